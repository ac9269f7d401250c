// The sampler as C functions, for tests/sim/test_sampler.py.
#include "sampler.h"

using rksim::Sampler;

extern "C" {

Sampler* sampler_new(int top_k, float top_p, float temperature, float repeat, float frequency, float presence,
                     int last_n, uint64_t seed, int n_vocab) {
  return new Sampler({top_k, top_p, temperature, repeat, frequency, presence, last_n, seed}, n_vocab);
}
void sampler_free(Sampler* s) { delete s; }
void sampler_reset(Sampler* s) { s->reset(); }
void sampler_accept(Sampler* s, int token) { s->accept(token); }
int sampler_sample(Sampler* s, const float* logits) { return s->sample(logits); }

// The random numbers a sampler of this seed draws with, in [0, 1).
void sampler_uniforms(uint64_t seed, double* out, int n) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < n; i++) out[i] = static_cast<double>(random() >> 11) * 0x1p-53;
}
}
