// A reader of GGUF v3 that trusts nothing: every count and offset is checked against the file before use.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace rksim {

enum class GgmlType : uint32_t { F32 = 0, F16 = 1, I8 = 24, I32 = 26 };

struct Tensor {
  std::string name;
  GgmlType type;
  std::vector<uint64_t> dims;  // fastest first, as GGUF has them
  const uint8_t* data;         // into the mapped file
  size_t bytes;
};

// One mapped file. Views and tensor data live as long as it does.
class Gguf {
 public:
  // kModel is of our own form and its checksums are compared, kVocabulary is that without tensors; kAdapter is any
  // GGUF, which has no checksums.
  enum class Content { kModel, kVocabulary, kAdapter };
  // Maps and checks the file, the tensors' CRC-32 on `threads` threads. Throws Error.
  Gguf(const std::string& path, Content content, int threads);
  ~Gguf();
  Gguf(const Gguf&) = delete;
  Gguf& operator=(const Gguf&) = delete;

  // Absent: nullopt. Another type: Error that names the key.
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<uint32_t> u32(std::string_view key) const;
  std::optional<float> f32(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::vector<std::string_view>> strings(std::string_view key) const;
  std::optional<std::vector<int32_t>> i32s(std::string_view key) const;  // i32 or u32 arrays
  std::optional<std::vector<float>> f32s(std::string_view key) const;

  // As above; absent: Error that names the key.
  std::string_view need_string(std::string_view key) const;
  uint32_t need_u32(std::string_view key) const;
  float need_f32(std::string_view key) const;

  const Tensor* tensor(std::string_view name) const;  // nullptr: absent
  // Of exactly this type and these dims; else Error.
  const Tensor& need_tensor(const std::string& name, GgmlType type, const std::vector<uint64_t>& dims) const;
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }  // of our own form; an adapter's is 0
  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  std::vector<std::string> keys() const;
  uint32_t checksum() const;  // of a model: differs where anything in its file does

 private:
  struct Value {
    uint32_t type, item_type;
    uint64_t count;  // 1 for scalars
    size_t at;       // of the first byte of the value (of the first item)
  };
  class Cursor;
  void parse();
  size_t aligned(size_t n) const { return (n + alignment_ - 1) / alignment_ * alignment_; }
  void parse_tensors(Cursor& at, uint64_t count);
  void check_version();
  void check_header(size_t header_end) const;
  void check_data(int threads) const;
  const Value* find(std::string_view key, uint32_t type) const;
  const Value* find_array(std::string_view key, uint32_t item_type) const;

  std::string path_;
  Content content_;
  uint32_t alignment_ = 0, version_ = 0;
  const uint8_t* base_ = nullptr;
  size_t size_ = 0;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<Tensor> tensors_;
  std::map<std::string_view, size_t> by_name_;
};

std::string listed(const std::vector<uint64_t>& dims);  // "[64, 4]"

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size);  // zlib's; start with 0

}  // namespace rksim
