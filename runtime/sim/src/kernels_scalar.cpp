// Plain C++: what every machine can run, and what the vector kernels are compared with.
#include "kernels.h"

#if defined(__F16C__)  // somebody builds all of it for their own processor
#include <immintrin.h>
#endif

namespace rksim {
extern const Kernels kScalarKernels;

namespace {
#include "float_kernels.inc"

// Accumulators of one block of rows, one token and one run of quads.
INLINE void accumulate(const uint8_t* w, const int8_t* x, int64_t width, int64_t q0, int64_t q1, int32_t acc[kRows]) {
  for (int64_t q = q0; q < q1; q++)
    for (int64_t r = 0; r < kRows; r++)
      for (int64_t i = 0; i < kQuad; i++)
        acc[r] += static_cast<int8_t>(w[(q * kRows + r) * kQuad + i]) * x[q * width * kQuad + i];
}

INLINE const int8_t* token_bytes(const Activations& x, int64_t t) {
  return x.q.data() + (t / x.width * x.quads * x.width + t % x.width) * kQuad;
}

void linear_i8(const Linear& w, const Activations& x, int64_t b0, int64_t b1, float* y, int64_t stride) {
  const int64_t quads = w.quads(), step = ceil_div(w.group, kQuad);
  for (int64_t b = b0; b < b1; b++) {
    const uint8_t* block = w.data + b * quads * kRows * kQuad;
    for (int64_t t = 0; t < x.tokens; t++) {
      float sum[kRows] = {};
      const float* scale_x = x.scale.data() + t * x.scale_groups;
      const bool by_group = x.scale_groups > 1;
      for (int64_t g = 0; g < w.groups; g++) {
        int32_t acc[kRows] = {};
        accumulate(block, token_bytes(x, t), x.width, g * step, g * step + step < quads ? g * step + step : quads, acc);
        for (int64_t r = 0; r < kRows; r++)
          sum[r] +=
              (w.scales[(b * w.groups + g) * kRows + r] * static_cast<float>(acc[r])) * (by_group ? scale_x[g] : 1.0f);
      }
      for (int64_t r = 0; r < kRows && b * kRows + r < w.n; r++)
        y[t * stride + b * kRows + r] = sum[r] * (by_group ? 1.0f : scale_x[0]);
    }
  }
}

void accumulate_i8(const Linear& w, const Activations& x, int64_t b0, int64_t b1, int32_t* acc, int64_t stride) {
  for (int64_t b = b0; b < b1; b++)
    for (int64_t t = 0; t < x.tokens; t++) {
      int32_t sums[kRows] = {};
      accumulate(w.data + b * w.quads() * kRows * kQuad, token_bytes(x, t), x.width, 0, w.quads(), sums);
      for (int64_t r = 0; r < kRows && b * kRows + r < w.n; r++) acc[t * stride + b * kRows + r] = sums[r];
    }
}

}  // namespace

constexpr Kernels kScalarKernels = [] {
  Kernels k = with_float_kernels({});
  k.name = "scalar";
  k.flip = 0;
  k.linear_i8 = linear_i8;
  k.accumulate_i8 = accumulate_i8;
  return k;
}();

}  // namespace rksim
