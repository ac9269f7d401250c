#include "model.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#include "error.h"

namespace rksim {
namespace {

constexpr size_t kHugePage = 2 << 20;
// Packed layers lie behind one another in pieces of so much, or a whole layer where that is more. Only what is written
// to takes memory.
constexpr size_t kPackedPiece = 64 << 20;

// The file's pages have been copied: give them back, so that a model is not in memory twice.
void drop_pages(const uint8_t* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace

Pages::Pages(size_t bytes, bool huge) : size_(bytes + (huge ? kHugePage : 0)) {
  void* map = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) throw std::bad_alloc();
  map_ = data_ = static_cast<uint8_t*>(map);
  if (!huge) return;
  data_ += (kHugePage - reinterpret_cast<uintptr_t>(map) % kHugePage) % kHugePage;
  madvise(data_, bytes, MADV_HUGEPAGE);
}
Pages::~Pages() {
  if (map_) munmap(map_, size_);
}
Pages::Pages(Pages&& other) noexcept
    : map_(std::exchange(other.map_, nullptr)), data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(map_, other.map_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Model::Model(const std::string& path, int threads)
    : kernels(rksim::kernels()), file(path, Gguf::Content::kModel, threads), pool(threads), tokenizer(file),
      description(describe(file)), shape(description.shape), features(description.features) {
  read_dtype();
  const Shape& s = shape;
  if (tokenizer.size() > s.n_vocab)
    throw Error(file.path() + ": it has " + std::to_string(tokenizer.size()) + " tokens for a vocabulary of " +
                std::to_string(s.n_vocab));
  embedding = &need("token_embd.weight", dtype == "fp32" ? GgmlType::F32 : GgmlType::F16,
                    {static_cast<uint64_t>(s.hidden), static_cast<uint64_t>(s.n_vocab)});
  for (int i = 0; i < s.n_layers; i++) layers.push_back(load_layer(i));
  output_norm = load_norm("output_norm", s.hidden, true);
  const bool tied = weight_type_ != GgmlType::I8 && !file.tensor("output.weight");
  output = load_linear(tied ? "token_embd.weight" : "output.weight", s.n_vocab, s.hidden);
  check_nothing_else();
}

// Norms, biases and the MLP's gate are there or not: their tensors say so.
Layer Model::load_layer(int index) {
  const Shape& s = shape;
  const int64_t heads = int64_t{s.n_heads} * s.head_dim, kv = int64_t{s.n_kv_heads} * s.head_dim;
  const std::string b = "blk." + std::to_string(index) + ".";
  Layer layer;
  const bool old = file.version() < 3;  // when all models had these
  layer.attn_norm = load_norm(b + "attn_norm", s.hidden, old);
  layer.q_norm = load_norm(b + "attn_q_norm", s.head_dim);
  layer.k_norm = load_norm(b + "attn_k_norm", s.head_dim);
  layer.attn_post_norm = load_norm(b + "post_attention_norm", s.hidden);
  layer.ffn_norm = load_norm(b + "ffn_norm", s.hidden, old);
  layer.ffn_post_norm = load_norm(b + "post_ffw_norm", s.hidden);
  layer.q = load_linear(b + "attn_q.weight", heads, s.hidden);
  layer.k = load_linear(b + "attn_k.weight", kv, s.hidden);
  layer.v = load_linear(b + "attn_v.weight", kv, s.hidden);
  layer.output = load_linear(b + "attn_output.weight", s.hidden, heads);
  if (old || file.tensor(b + "ffn_gate.weight"))
    layer.gate = load_linear(b + "ffn_gate.weight", s.intermediate, s.hidden);
  layer.up = load_linear(b + "ffn_up.weight", s.intermediate, s.hidden);
  layer.down = load_linear(b + "ffn_down.weight", s.hidden, s.intermediate);
  check_alike(layer.q, layer.k, b + "attn");
  check_alike(layer.q, layer.v, b + "attn");
  if (layer.gate.n) check_alike(layer.gate, layer.up, b + "ffn");
  if (features.parallel && (!layer.attn_norm.gain || layer.ffn_norm.gain))
    throw Error(file.path() + ": " + b + "attn_norm is the one norm that attention and MLP side by side can have");
  return layer;
}

void Model::read_dtype() {
  dtype = file.need_string("rksim.dtype");
  group_size_ = file.need_u32("rksim.group_size");
  hybrid_ = file.f32("rksim.hybrid_rate").has_value();
  if (dtype != "fp16" && dtype != "fp32" && dtype.rfind("w8a8", 0) != 0)
    throw Error(file.path() + ": unknown rksim.dtype " + dtype);
  // Groups are whole quads and whole vectors in every kernel.
  if (group_size_ % 32 || group_size_ > kMaxSide)
    throw Error(file.path() + ": rksim.group_size must be a multiple of 32, not " + std::to_string(group_size_));
  weight_type_ = dtype == "fp32" ? GgmlType::F32 : dtype == "fp16" ? GgmlType::F16 : GgmlType::I8;
  kv_fp32 = dtype == "fp32";
}

// A tensor that nothing here reads would have changed the answers.
void Model::check_nothing_else() const {
  for (const Tensor& tensor : file.tensors()) {
    const std::string& name = tensor.name;
    if (!read_.count(name) && !is_described(name) && name != "rksim.tensor_crc32")
      throw Error(file.path() + " has the tensor " + name + ", which this runtime does not know: update rk3588");
  }
}

const Tensor& Model::need(const std::string& name, GgmlType type, const std::vector<uint64_t>& dims) {
  read_.insert(name);
  return file.need_tensor(name, type, dims);
}

const float* Model::load_vector(const std::string& name, int64_t n) {
  read_.insert(name);
  return need_vector(file, name, n);
}

const float* Model::load_bias(const std::string& name, int64_t n) {
  return file.tensor(name) ? load_vector(name, n) : nullptr;
}

Norm Model::load_norm(const std::string& name, int64_t n, bool needed) {
  if (!needed && !file.tensor(name + ".weight")) return {};
  const Norm norm{load_vector(name + ".weight", n), load_bias(name + ".bias", n)};
  if (norm.bias && features.norm == NormKind::kRms)
    throw Error(file.path() + ": " + name + " has a bias, and RMSNorm knows none");
  return norm;
}

Linear Model::load_linear(const std::string& name, int64_t n, int64_t k) {
  Linear linear;
  linear.id = static_cast<int>(linears_.size());
  linear.n = n;
  linear.k = k;
  linear.type = weight_type_;
  const bool grouped = weight_type_ == GgmlType::I8 && group_size_ != 0 && !(hybrid_ && has_one_scale(name));
  linear.group = grouped ? group_size_ : k;
  linear.groups = ceil_div(k, linear.group);
  if (weight_type_ == GgmlType::I8 && linear.group > kMaxSum)
    throw Error(file.path() + ": tensor " + name + " has a scale for " + std::to_string(linear.group) +
                " inputs, and int32 sums hold " + std::to_string(kMaxSum) + ": convert it with groups");
  linear.data = need(name, weight_type_, {static_cast<uint64_t>(k), static_cast<uint64_t>(n)}).data;
  if (weight_type_ == GgmlType::I8) pack(name, linear);
  linear.bias = load_bias(name.substr(0, name.rfind('.')) + ".bias", n);
  linears_[name] = linear;
  return linear;
}

// In a hybrid, the shape of a layer's scales says whether it has groups.
bool Model::has_one_scale(const std::string& name) const {
  const Tensor* scale = file.tensor(name + ".scale");
  return scale && scale->dims.size() == 2 && scale->dims[0] == 1;
}

// Layers that read the same input share its quantised form.
void Model::check_alike(const Linear& a, const Linear& b, const std::string& block) const {
  if (a.group != b.group)
    throw Error(file.path() + ": " + block + " mixes groups between layers of one input; convert the model again");
}

void Model::pack(const std::string& name, Linear& linear) {
  const auto n = static_cast<uint64_t>(linear.n), groups = static_cast<uint64_t>(linear.groups);
  const Tensor& scale = need(name + ".scale", GgmlType::F32, {groups, n});
  const float* scales = reinterpret_cast<const float*>(scale.data);
  for (uint64_t i = 0; i < n * groups; i++)
    if (!std::isfinite(scales[i]))
      throw Error(file.path() + ": tensor " + scale.name + " has a value that is not finite");
  const size_t bytes = n * static_cast<size_t>(linear.k);
  // The sign trick of the AVX2 kernel has no place for -128.
  if (std::memchr(linear.data, 0x80, bytes)) throw Error(file.path() + ": tensor " + name + " holds -128");

  const size_t weights = static_cast<size_t>(linear.blocks() * linear.quads() * kRows * kQuad);
  uint8_t* out = packed_room(weights + static_cast<size_t>(linear.blocks() * linear.groups * kRows) * sizeof(float));
  const auto* source = reinterpret_cast<const int8_t*>(linear.data);
  pool.run(linear.blocks(), 4,
           [&](int64_t b0, int64_t b1) { pack_rows(source, linear.n, linear.k, kernels.flip, b0, b1, out); });
  pack_scales(scales, linear.n, linear.groups, reinterpret_cast<float*>(out + weights));
  drop_pages(linear.data, bytes);
  linear.data = out;
  linear.scales = reinterpret_cast<const float*>(out + weights);
}

// Layers share huge pages, and follow one another in memory as they do in a token's way through the model.
uint8_t* Model::packed_room(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (packed_left_ < bytes) {
    packed_left_ = std::max(bytes, kPackedPiece);
    packed_.emplace_back(packed_left_, true);
    packed_next_ = packed_.back().data();
  }
  packed_left_ -= bytes;
  return std::exchange(packed_next_, packed_next_ + bytes);
}

const Linear* Model::linear(const std::string& tensor) const {
  auto it = linears_.find(tensor);
  return it == linears_.end() ? nullptr : &it->second;
}

}  // namespace rksim
