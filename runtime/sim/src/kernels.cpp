#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cpu_x86.h"
#include "error.h"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace rksim {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool (*runs_here)();
};

bool always() { return true; }

#if defined(__x86_64__)
const Candidate kCandidates[] = {
    {&kAvx512Kernels, has_avx512vnni}, {&kAvx2Kernels, has_avx2}, {&kScalarKernels, always}};
#elif defined(__aarch64__)
bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
const Candidate kCandidates[] = {{&kNeonKernels, has_dotprod}, {&kScalarKernels, always}};
#else
const Candidate kCandidates[] = {{&kScalarKernels, always}};
#endif

// Operands here may be -128, which model files are refused for.
constexpr int64_t kMaxGemm = 2147483647 / (128 * 128);

const Kernels& choose() {
  if (const char* name = std::getenv("RKSIM_KERNEL"); name && *name) return kernels_by_name(name);
  for (const Candidate& c : kCandidates)
    if (c.runs_here()) return *c.kernels;
  return kScalarKernels;
}

}  // namespace

const Kernels& kernels_by_name(std::string_view name) {
  std::string known;
  for (const Candidate& c : kCandidates) {
    if (name == c.kernels->name) {
      if (c.runs_here()) return *c.kernels;
      throw Error("this processor cannot run the kernel " + std::string(name) + " (RKSIM_KERNEL)");
    }
    known += std::string(known.empty() ? "" : ", ") + c.kernels->name;
  }
  throw Error("unknown kernel (RKSIM_KERNEL) '" + std::string(name) + "': there are " + known);
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

void Activations::shape(int64_t new_tokens, int64_t new_k, int64_t new_group, bool scale_by_group) {
  tokens = new_tokens;
  k = new_k;
  group = new_group;
  width = tokens == 1 ? 1 : kTile;
  quads = ceil_div(k, kQuad);
  groups = ceil_div(k, group);
  const size_t slots = static_cast<size_t>(ceil_div(tokens, width) * width);
  const size_t bytes = slots * static_cast<size_t>(quads * kQuad);
  if (q.size() < bytes) q.resize(bytes);
  scale_groups = scale_by_group ? groups : 1;
  const size_t scales = slots * static_cast<size_t>(scale_groups);
  if (scale.size() < scales) scale.resize(scales);
  if (amax.size() < scales) amax.resize(scales);
  if (correction.size() < slots * static_cast<size_t>(groups)) correction.resize(slots * static_cast<size_t>(groups));
  // What no token writes: the tokens that fill the last tile, and the inputs that fill the last quad.
  if (slots != static_cast<size_t>(tokens)) {
    const size_t tile = static_cast<size_t>(width * quads * kQuad);
    std::memset(q.data() + bytes - tile, 0, tile);
  }
  if (k % kQuad)
    for (int64_t t = 0; t < tokens; t++)
      std::memset(q.data() + ((t / width * quads + quads - 1) * width + t % width) * kQuad, 0, kQuad);
}

void pack_rows(const int8_t* q, int64_t n, int64_t k, uint8_t flip, int64_t b0, int64_t b1, uint8_t* out) {
  const int64_t quads = ceil_div(k, kQuad);
  for (int64_t b = b0; b < b1; b++) {
    uint8_t* block = out + b * quads * kRows * kQuad;
    for (int64_t r = 0; r < kRows; r++) {
      const int64_t row = b * kRows + r;
      const int8_t* source = q + row * k;
      for (int64_t quad = 0; quad < quads; quad++) {
        uint32_t four = 0;
        if (row < n) std::memcpy(&four, source + quad * kQuad, static_cast<size_t>(std::min(kQuad, k - quad * kQuad)));
        four ^= flip * 0x01010101u;
        std::memcpy(block + (quad * kRows + r) * kQuad, &four, sizeof four);
      }
    }
  }
}

void pack_scales(const float* scales, int64_t n, int64_t groups, float* out) {
  for (int64_t b = 0; b < ceil_div(n, kRows); b++)
    for (int64_t g = 0; g < groups; g++)
      for (int64_t r = 0; r < kRows; r++) {
        const int64_t row = b * kRows + r;
        out[(b * groups + g) * kRows + r] = row < n ? scales[row * groups + g] : 0.0f;
      }
}

void gemm_i8(const Kernels& kernels, const int8_t* w, const int8_t* x, int64_t rows, int64_t k, int64_t tokens,
             int32_t* acc) {
  if (rows < 1 || k < 1 || tokens < 1) throw Error("gemm_i8 needs at least one row, one input and one token");
  if (k > kMaxGemm) throw Error("gemm_i8 adds up at most " + std::to_string(kMaxGemm) + " products in an int32");
  Linear linear;
  linear.n = rows;
  linear.k = linear.group = k;
  std::vector<uint8_t> packed(static_cast<size_t>(linear.blocks() * linear.quads() * kRows * kQuad));
  pack_rows(w, rows, k, kernels.flip, 0, linear.blocks(), packed.data());
  linear.data = packed.data();
  Activations a;
  a.shape(tokens, k, k, false);
  for (int64_t t = 0; t < tokens; t++) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; i++) {
      a.q[static_cast<size_t>(((t / a.width * a.quads + i / kQuad) * a.width + t % a.width) * kQuad + i % kQuad)] =
          x[t * k + i];
      sum += x[t * k + i];
    }
    a.correction[static_cast<size_t>(t)] = minus_128_times(sum);
  }
  kernels.accumulate_i8(linear, a, 0, linear.blocks(), acc, rows);
}

}  // namespace rksim
