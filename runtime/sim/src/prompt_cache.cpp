#include "prompt_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "gguf.h"
#include "model.h"

namespace rksim {
namespace {

// The file: this header, ids, keys and values, and the CRC-32 of all before it. Little-endian, as every machine here.
struct Header {
  char magic[8];
  CacheKey key;
  uint32_t tokens;
  uint64_t kv_bytes;
};
static_assert(sizeof(Header) == 32, "no padding");
constexpr char kMagic[9] = "RKSIMPC1";

struct File {
  explicit File(int fd) : fd(fd) {}
  ~File() { close(); }
  // False where the last bytes could not be written.
  bool close() {
    const int open = fd;
    fd = -1;
    return open < 0 || ::close(open) == 0;
  }
  int fd;
};

bool write_all(int fd, const void* data, size_t size) {
  for (const char* at = static_cast<const char*>(data); size;) {
    const ssize_t done = ::write(fd, at, size);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    at += done;
    size -= static_cast<size_t>(done);
  }
  return true;
}

std::vector<uint8_t> read_all(const std::string& path) {
  File file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info;
  if (file.fd < 0 || fstat(file.fd, &info) != 0) throw Error("cannot open " + path + ": " + std::strerror(errno));
  if (!S_ISREG(info.st_mode)) throw Error(path + " is not a prompt cache: not a file");
  std::vector<uint8_t> data(static_cast<size_t>(info.st_size));
  for (size_t at = 0; at < data.size();) {
    const ssize_t done = ::read(file.fd, data.data() + at, data.size() - at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) throw Error("cannot read " + path + (done ? std::string(": ") + std::strerror(errno) : ""));
    at += static_cast<size_t>(done);
  }
  return data;
}

}  // namespace

void write_prompt_cache(const std::string& path, const PromptCache& cache) {
  Header header{{}, cache.key, static_cast<uint32_t>(cache.ids.size()), cache.kv.size()};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  const size_t ids_bytes = cache.ids.size() * sizeof(int32_t);
  uint32_t crc = crc32(0, reinterpret_cast<const uint8_t*>(&header), sizeof header);
  crc = crc32(crc, reinterpret_cast<const uint8_t*>(cache.ids.data()), ids_bytes);
  crc = crc32(crc, cache.kv.data(), cache.kv.size());

  std::string part = path + ".XXXXXX";
  File file(mkostemp(part.data(), O_CLOEXEC));
  bool whole = file.fd >= 0 && write_all(file.fd, &header, sizeof header) &&
               write_all(file.fd, cache.ids.data(), ids_bytes) &&
               write_all(file.fd, cache.kv.data(), cache.kv.size()) && write_all(file.fd, &crc, sizeof crc) &&
               fchmod(file.fd, 0644) == 0 && fsync(file.fd) == 0 && file.close();
  whole = whole && std::rename(part.c_str(), path.c_str()) == 0;
  if (whole) return;
  const std::string why = std::strerror(errno);
  unlink(part.c_str());
  throw Error("cannot write the prompt cache " + path + ": " + why);
}

PromptCache read_prompt_cache(const std::string& path, const CacheKey& key, size_t token_bytes) {
  const std::vector<uint8_t> data = read_all(path);
  Header header;
  if (data.size() < sizeof header + sizeof(uint32_t) || std::memcmp(data.data(), kMagic, sizeof header.magic) != 0)
    throw Error(path + " is not a prompt cache of this runtime");
  std::memcpy(&header, data.data(), sizeof header);
  const size_t end = data.size() - sizeof(uint32_t);
  uint32_t crc;
  std::memcpy(&crc, data.data() + end, sizeof crc);
  const uint64_t ids_bytes = uint64_t{header.tokens} * sizeof(int32_t);
  if (crc != crc32(0, data.data(), end) || ids_bytes > end - sizeof header ||
      header.kv_bytes != end - sizeof header - ids_bytes)
    throw Error(path + " is damaged: save the prompt cache again");
  if (header.key.model != key.model || header.kv_bytes != uint64_t{header.tokens} * token_bytes)
    throw Error(path + " was saved with another model: its keys and values are of no use here");
  if (const uint32_t other = header.key.arithmetic ^ key.arithmetic)
    throw Error(path + " was saved with another " +
                (other == Session::kLongFactors ? "max_context_len, for which this model turns its heads otherwise"
                                                : "RKSIM_ACT_SCALE") +
                ": its keys and values are of no use here");
  PromptCache cache{header.key, {}, {}};
  cache.ids.resize(header.tokens);
  if (ids_bytes) std::memcpy(cache.ids.data(), data.data() + sizeof header, ids_bytes);
  cache.kv.assign(data.begin() + static_cast<std::ptrdiff_t>(sizeof header + ids_bytes),
                  data.begin() + static_cast<std::ptrdiff_t>(end));
  return cache;
}

}  // namespace rksim
