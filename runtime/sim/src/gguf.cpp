#include "gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

#include "error.h"
#include "process.h"

namespace rksim {
namespace {

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
constexpr bool kCompareChecksums = false;  // else a fuzzer would see nothing but this comparison
#else
constexpr bool kCompareChecksums = true;
#endif

// GGUF's own numbers for value types.
enum : uint32_t { U8, I8T, U16, I16, U32, I32, F32T, BOOL, STRING, ARRAY, U64, I64, F64 };
constexpr uint64_t kAlignment = 64, kForeignAlignment = 32, kMaxDims = 4;
constexpr uint32_t kOldestVersion = 2, kVersion = 3;
constexpr const char* kChecksums = "rksim.tensor_crc32";

size_t scalar_size(uint32_t type) {
  switch (type) {
    case U8:
    case I8T:
    case BOOL: return 1;
    case U16:
    case I16: return 2;
    case U32:
    case I32:
    case F32T: return 4;
    case U64:
    case I64:
    case F64: return 8;
    default: return 0;
  }
}

size_t element_size(GgmlType type) {
  switch (type) {
    case GgmlType::F16: return 2;
    case GgmlType::I8: return 1;
    default: return 4;
  }
}

template <class T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

}  // namespace

// Reads forward through the header; every step is checked against the end of the file.
class Gguf::Cursor {
 public:
  Cursor(const Gguf& file) : file_(file) {}
  size_t at = 0;

  template <class T>
  T take() {
    need(sizeof(T));
    T value = load<T>(file_.base_ + at);
    at += sizeof(T);
    return value;
  }
  void skip(uint64_t count, size_t size) {
    if (count > (file_.size_ - at) / size) fail();
    at += count * size;
  }
  std::string_view text() {
    uint64_t n = take<uint64_t>();
    need(n);
    std::string_view view(reinterpret_cast<const char*>(file_.base_ + at), n);
    at += n;
    return view;
  }
  [[noreturn]] void fail() const {
    throw Error(file_.path_ + " is truncated or damaged: its header runs past the end of the file at byte " +
                std::to_string(at) + "; copy or convert it again");
  }

 private:
  void need(uint64_t n) const {
    if (n > file_.size_ - at) fail();
  }
  const Gguf& file_;
};

Gguf::Gguf(const std::string& path, Content content, int threads) : path_(path), content_(content) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (fd < 0 || fstat(fd, &info) != 0) {
    std::string why = std::strerror(errno);
    if (fd >= 0) close(fd);
    throw Error("cannot open " + path + ": " + why);
  }
  if (!S_ISREG(info.st_mode) || info.st_size < 24) {
    close(fd);
    throw Error(path + " is no GGUF file: " + (S_ISREG(info.st_mode) ? "it has fewer than 24 bytes" : "not a file"));
  }
  size_ = static_cast<size_t>(info.st_size);
  void* map = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  int error = errno;
  close(fd);
  if (map == MAP_FAILED) throw Error("cannot map " + path + ": " + std::strerror(error));
  base_ = static_cast<const uint8_t*>(map);
  try {
    parse();
    if (content == Content::kModel) check_data(threads);
  } catch (...) {
    munmap(map, size_);
    throw;
  }
}

Gguf::~Gguf() { munmap(const_cast<uint8_t*>(base_), size_); }

void Gguf::parse() {
  Cursor at(*this);
  if (at.take<uint32_t>() != 0x46554747) throw Error(path_ + " is not a GGUF file: invalid magic characters");
  if (uint32_t version = at.take<uint32_t>(); version != 3)
    throw Error(path_ + " is GGUF version " + std::to_string(version) + ", this runtime reads 3");
  uint64_t n_tensors = at.take<uint64_t>(), n_values = at.take<uint64_t>();
  for (uint64_t i = 0; i < n_values; i++) {
    std::string key(at.text());
    Value v{at.take<uint32_t>(), 0, 1, 0};
    if (v.type == ARRAY) {
      v.item_type = at.take<uint32_t>();
      v.count = at.take<uint64_t>();
    }
    v.at = at.at;
    uint32_t type = v.type == ARRAY ? v.item_type : v.type;
    if (type == STRING) {
      for (uint64_t item = 0; item < v.count; item++) at.text();
    } else if (size_t size = scalar_size(type)) {
      at.skip(v.count, size);
    } else {
      throw Error(path_ + " is damaged: " + key + " has an unknown value type " + std::to_string(type));
    }
    if (!values_.emplace(std::move(key), v).second) throw Error(path_ + " is damaged: a key stands in it twice");
  }
  if (content_ != Content::kAdapter) check_version();
  parse_tensors(at, n_tensors);
}

void Gguf::parse_tensors(Cursor& at, uint64_t count) {
  alignment_ = u32("general.alignment").value_or(kForeignAlignment);
  if (content_ != Content::kAdapter && alignment_ != kAlignment) throw Error(path_ + ": general.alignment must be 64");
  // The format's own rule; what is read as float32 needs 4.
  if (alignment_ == 0 || alignment_ % 8 || alignment_ > 1 << 20)
    throw Error(path_ + ": general.alignment is " + std::to_string(alignment_) + ": the file is damaged");
  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < count; i++) {
    Tensor t{std::string(at.text()), GgmlType::F32, {}, nullptr, 0};
    uint32_t dims = at.take<uint32_t>();
    if (dims == 0 || dims > kMaxDims)
      throw Error(path_ + ": tensor " + t.name + " has " + std::to_string(dims) + " dimensions");
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dims; d++) {
      t.dims.push_back(at.take<uint64_t>());
      // No tensor can have more elements than the file has bytes.
      if (t.dims.back() == 0 || t.dims.back() > size_ / elements)
        throw Error(path_ + ": tensor " + t.name + " is larger than the file");
      elements *= t.dims.back();
    }
    uint32_t type = at.take<uint32_t>();
    if (type != 0 && type != 1 && type != 24 && (type != 26 || t.name != kChecksums))
      throw Error(path_ + ": tensor " + t.name + " has type " + std::to_string(type) +
                  ", only F32, F16 and I8 are read");
    t.type = static_cast<GgmlType>(type);
    t.bytes = elements * element_size(t.type);
    offsets.push_back(at.take<uint64_t>());
    tensors_.push_back(std::move(t));
  }
  if (content_ != Content::kAdapter) check_header(at.at);
  size_t start = aligned(at.at), next = 0;
  for (size_t i = 0; i < tensors_.size(); i++) {
    Tensor& t = tensors_[i];
    if (offsets[i] != next) throw Error(path_ + ": tensor " + t.name + " is not where the one before it ends");
    if (start > size_ || offsets[i] > size_ - start || t.bytes > size_ - start - offsets[i])
      throw Error(path_ + " is truncated: tensor " + t.name + " runs past its end; copy or convert it again");
    t.data = base_ + start + offsets[i];
    next = aligned(offsets[i] + t.bytes);
    if (!by_name_.emplace(t.name, i).second) throw Error(path_ + ": tensor " + t.name + " stands in it twice");
  }
  size_t end = tensors_.empty() ? at.at : start + next;
  if (content_ != Content::kAdapter && size_ < end)
    throw Error(path_ + " is truncated: it ends before its padding does; copy or convert it again");
  if (size_ > std::max(end, start)) throw Error(path_ + " has bytes after its last tensor; copy or convert it again");
}

// The CRC's own four bytes count as zero, and so do not need to be known when it is computed.
void Gguf::check_header(size_t header_end) const {
  size_t start = std::min(aligned(header_end), size_);
  const Value* v = find("rksim.header_crc32", U32);
  if (!v) throw Error(path_ + " has no rksim.header_crc32; convert the model again");
  const uint8_t zero[4] = {};
  uint32_t crc = crc32(0, base_, v->at);
  crc = crc32(crc, zero, 4);
  crc = crc32(crc, base_ + v->at + 4, start - v->at - 4);
  if (kCompareChecksums && crc != load<uint32_t>(base_ + v->at))
    throw Error(path_ + " has changed: the checksum of its header does not match; copy or convert it again");
}

void Gguf::check_version() {
  const std::optional<uint32_t> version = u32("rksim.version");
  if (!version)
    throw Error(path_ + " was not written for this runtime (it has no rksim.version): convert it with rkconvert");
  if (*version < kOldestVersion)
    throw Error(path_ + " is of rksim.version " + std::to_string(*version) + ", this runtime reads " +
                std::to_string(kOldestVersion) + " and " + std::to_string(kVersion) + ": convert the model again");
  if (*version > kVersion)
    throw Error(path_ + " is of rksim.version " + std::to_string(*version) + ", this runtime reads " +
                std::to_string(kOldestVersion) + " and " + std::to_string(kVersion) + ": update rk3588");
  version_ = *version;
}

uint32_t Gguf::checksum() const {
  const uint32_t header = u32("rksim.header_crc32").value_or(0);
  return crc32(header, tensors_.back().data, tensors_.back().bytes);
}

// The last tensor holds the CRC-32 of each of the others, in their order, and behind them the CRC-32 of these.
void Gguf::check_data(int threads) const {
  const size_t n = tensors_.empty() ? 0 : tensors_.size() - 1;
  if (tensors_.empty() || tensors_.back().name != kChecksums || tensors_.back().type != GgmlType::I32 ||
      tensors_.back().bytes != 4 * (n + 1))
    throw Error(path_ + " needs a last tensor " + kChecksums + " with " + std::to_string(n + 1) +
                " values; convert the model again");
  const uint8_t* sums = tensors_.back().data;
  if (!kCompareChecksums) return;
  std::atomic<size_t> next{0}, bad{crc32(0, sums, 4 * n) == load<uint32_t>(sums + 4 * n) ? SIZE_MAX : n};
  auto work = [&] {
    for (size_t i; (i = next++) < n;)
      if (crc32(0, tensors_[i].data, tensors_[i].bytes) != load<uint32_t>(sums + 4 * i)) bad = i;
  };
  std::vector<std::thread> helpers;
  try {
    SignalsHeld held;
    for (int i = 1; i < threads; i++) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // as many as there may be
  }
  work();
  for (auto& thread : helpers) thread.join();
  if (bad != SIZE_MAX)
    throw Error(path_ + " has changed: the checksum of tensor " + tensors_[bad].name +
                " does not match; copy or convert it again");
}

const Gguf::Value* Gguf::find(std::string_view key, uint32_t type) const {
  auto it = values_.find(key);
  if (it == values_.end()) return nullptr;
  if (it->second.type != type) throw Error(path_ + ": " + std::string(key) + " has the wrong type");
  return &it->second;
}

const Gguf::Value* Gguf::find_array(std::string_view key, uint32_t item_type) const {
  const Value* v = find(key, ARRAY);
  if (v && v->item_type != item_type) throw Error(path_ + ": " + std::string(key) + " has the wrong item type");
  return v;
}

std::optional<std::string_view> Gguf::string(std::string_view key) const {
  const Value* v = find(key, STRING);
  if (!v) return {};
  Cursor at(*this);
  at.at = v->at;
  return at.text();
}

std::optional<uint32_t> Gguf::u32(std::string_view key) const {
  const Value* v = find(key, U32);
  return v ? std::optional(load<uint32_t>(base_ + v->at)) : std::nullopt;
}

std::optional<float> Gguf::f32(std::string_view key) const {
  const Value* v = find(key, F32T);
  return v ? std::optional(load<float>(base_ + v->at)) : std::nullopt;
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const Value* v = find(key, BOOL);
  return v ? std::optional(base_[v->at] != 0) : std::nullopt;
}

std::optional<std::vector<std::string_view>> Gguf::strings(std::string_view key) const {
  const Value* v = find_array(key, STRING);
  if (!v) return {};
  std::vector<std::string_view> items;
  Cursor at(*this);
  at.at = v->at;
  for (uint64_t i = 0; i < v->count; i++) items.push_back(at.text());
  return items;
}

std::optional<std::vector<int32_t>> Gguf::i32s(std::string_view key) const {
  const Value* v = find(key, ARRAY);
  if (!v) return {};
  if (v->item_type != I32 && v->item_type != U32)
    throw Error(path_ + ": " + std::string(key) + " has the wrong item type");
  std::vector<int32_t> items(v->count);
  if (v->count) std::memcpy(items.data(), base_ + v->at, 4 * v->count);
  return items;
}

std::optional<std::vector<float>> Gguf::f32s(std::string_view key) const {
  const Value* v = find_array(key, F32T);
  if (!v) return {};
  std::vector<float> items(v->count);
  if (v->count) std::memcpy(items.data(), base_ + v->at, 4 * v->count);
  return items;
}

std::string listed(const std::vector<uint64_t>& dims) {
  std::string text;
  for (uint64_t d : dims) text += (text.empty() ? "[" : ", ") + std::to_string(d);
  return text + "]";
}

namespace {
template <class T>
T needed(std::optional<T> value, const std::string& path, std::string_view key) {
  if (!value) throw Error(path + " lacks " + std::string(key) + "; convert the model again");
  return *value;
}
}  // namespace

std::string_view Gguf::need_string(std::string_view key) const { return needed(string(key), path_, key); }
uint32_t Gguf::need_u32(std::string_view key) const { return needed(u32(key), path_, key); }
float Gguf::need_f32(std::string_view key) const { return needed(f32(key), path_, key); }

std::vector<std::string> Gguf::keys() const {
  std::vector<std::string> found;
  for (const auto& [key, _] : values_) found.push_back(key);
  return found;
}

const Tensor& Gguf::need_tensor(const std::string& name, GgmlType type, const std::vector<uint64_t>& dims) const {
  const Tensor* found = tensor(name);
  if (!found) throw Error(path_ + " lacks the tensor " + name + "; convert the model again");
  if (found->type != type || found->dims != dims)
    throw Error(path_ + ": tensor " + name + " is " + listed(found->dims) + " of type " +
                std::to_string(static_cast<uint32_t>(found->type)) + ", expected " + listed(dims) + " of type " +
                std::to_string(static_cast<uint32_t>(type)));
  return *found;
}

const Tensor* Gguf::tensor(std::string_view name) const {
  auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

}  // namespace rksim
