// librksim's door: rksim.h over the engine. No exception leaves it.
#include "rksim.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>

#include "error.h"
#include "kernels.h"
#include "lora.h"

struct rksim_model {
  std::unique_ptr<rksim::Gguf> vocabulary;  // opened VOCAB_ONLY: this and `tokenizer_only`, no `model`
  std::unique_ptr<rksim::Tokenizer> tokenizer_only;
  int32_t context_length = 0;  // what the vocabulary's file says of it; 0: nothing
  std::unique_ptr<rksim::Model> model;
  std::unique_ptr<rksim::Lora> lora;
  std::unique_ptr<rksim::Session> session;  // as long as the last sequence

  const rksim::Tokenizer& tokenizer() const { return model ? model->tokenizer : *tokenizer_only; }
  rksim::Model& weights() {
    if (!model) throw rksim::Error("this model was opened for its vocabulary only");
    return *model;
  }
  // A session that holds n positions, kept for the next call.
  rksim::Session& sequence(size_t n) {
    if (n == 0 || n > (1u << 20)) throw rksim::Error("a sequence must have 1 to 1048576 tokens");
    // A longer context may turn heads by other factors: what was asked before must not show.
    const rksim::Rope& rope = weights().features.rope;
    if (n > capacity || rope.is_long(static_cast<int64_t>(n)) != rope.is_long(static_cast<int64_t>(capacity))) {
      session = nullptr;
      capacity = 0;
      session = std::make_unique<rksim::Session>(weights(), static_cast<int>(n));
      capacity = n;
    }
    session->reset();
    session->use(lora.get());
    return *session;
  }
  // The same, not emptied: its first `kept` positions are those of the call before, and n come behind them.
  rksim::Session& going_on(size_t kept, size_t n) {
    const size_t there = session ? static_cast<size_t>(session->position()) : 0;
    if (kept > there)
      throw rksim::Error("there are " + std::to_string(there) + " positions to go on from, not " +
                         std::to_string(kept));
    if (n > capacity - kept)
      throw rksim::Error("the sequence was begun for " + std::to_string(capacity) + " positions");
    session->rewind(static_cast<int64_t>(kept));
    return *session;
  }
  size_t capacity = 0;
};

namespace {

thread_local std::string last_error;

std::optional<rksim::ActScale> act_scale_of(int flags) {
  switch (flags & ~RKSIM_OPEN_VOCAB_ONLY) {
    case 0: return std::nullopt;
    case RKSIM_OPEN_ACT_TOKEN: return rksim::ActScale::kToken;
    case RKSIM_OPEN_ACT_TILE64: return rksim::ActScale::kTile64;
    case RKSIM_OPEN_ACT_GROUP: return rksim::ActScale::kGroup;
    default: throw rksim::Error("unknown flags " + std::to_string(flags) + ", or more than one activation scale");
  }
}

// Runs f and turns an exception into `failure` and a sentence.
template <class F, class R>
R guarded(R failure, F&& f) {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
  } catch (const std::exception& error) {
    last_error = error.what();
  }
  return failure;
}

}  // namespace

extern "C" {

const char* rksim_version(void) { return "0.1.0"; }
const char* rksim_last_error(void) { return last_error.c_str(); }

const char* rksim_kernel(void) {
  return guarded(static_cast<const char*>(nullptr), [] { return rksim::kernels().name; });
}

rksim_model* rksim_open(const char* path, int n_threads, int flags) {
  return guarded(static_cast<rksim_model*>(nullptr), [&] {
    auto m = std::make_unique<rksim_model>();
    std::optional<rksim::ActScale> act_scale = act_scale_of(flags);
    int threads = n_threads > 0 ? n_threads : rksim::default_threads();
    if (flags & RKSIM_OPEN_VOCAB_ONLY) {
      m->vocabulary = std::make_unique<rksim::Gguf>(path, rksim::Gguf::Content::kVocabulary, threads);
      m->tokenizer_only = std::make_unique<rksim::Tokenizer>(*m->vocabulary);
      const char* key = m->vocabulary->version() < 3 ? "llama.context_length" : "rksim.context_length";
      m->context_length = static_cast<int32_t>(std::min(m->vocabulary->u32(key).value_or(0), 1u << 30));
    } else {
      m->model = std::make_unique<rksim::Model>(path, threads);
      m->model->act_scale = act_scale;
    }
    return m.release();
  });
}

void rksim_close(rksim_model* model) { delete model; }

int rksim_get_info(const rksim_model* m, rksim_info* out) {
  const rksim::Tokenizer& t = m->tokenizer();
  std::memset(out, 0, sizeof *out);
  if (m->model) {
    const rksim::Shape& s = m->model->shape;
    *out = {s.n_vocab, s.n_layers, s.hidden, s.intermediate, s.n_heads, s.n_kv_heads, s.head_dim, s.context_length,
            0,         0,          0};
  }
  if (!m->model) {
    out->n_vocab = t.size();  // a model may have more rows than its tokenizer has tokens
    out->context_length = m->context_length;
  }
  out->bos_id = t.bos_id();
  out->eos_id = t.eos_id();
  out->add_bos = t.add_bos();
  return 0;
}

int64_t rksim_tokenize(const rksim_model* m, const char* text, size_t length, int flags, int32_t* ids,
                       size_t capacity) {
  return guarded<>(int64_t{-1}, [&] {
    auto found = m->tokenizer().encode({text, length}, flags & RKSIM_ADD_BOS, flags & RKSIM_PARSE_SPECIAL);
    if (size_t n = std::min(found.size(), capacity)) std::memcpy(ids, found.data(), n * sizeof *ids);
    return static_cast<int64_t>(found.size());
  });
}

int64_t rksim_detokenize(const rksim_model* m, const int32_t* ids, size_t n, int flags, char* text, size_t capacity) {
  return guarded<>(int64_t{-1}, [&] {
    std::string found = m->tokenizer().decode(ids, n, flags & RKSIM_SKIP_SPECIAL);
    if (size_t size = std::min(found.size(), capacity)) std::memcpy(text, found.data(), size);
    return static_cast<int64_t>(found.size());
  });
}

int rksim_use_lora(rksim_model* m, const char* path, float scale) {
  return guarded(-1, [&] {
    m->lora = path ? std::make_unique<rksim::Lora>(path, m->weights(), scale) : nullptr;
    return 0;
  });
}

int rksim_logits(rksim_model* m, const int32_t* ids, size_t n, int chunk, float* out, rksim_progress progress) {
  return guarded(-1, [&] {
    rksim::Session& session = m->sequence(n);
    session.chunk = chunk > 0 ? static_cast<size_t>(chunk) : rksim::Session::kDefaultChunk;
    session.eval_all(ids, n, out, progress);
    return 0;
  });
}

int rksim_greedy(rksim_model* m, const int32_t* ids, size_t n, size_t count, int32_t* out, rksim_progress progress) {
  return guarded(-1, [&] {
    if (n == 0 || count > (1u << 20)) throw rksim::Error("one token at least goes before, and at most 1048576 come");
    rksim::Session& session = m->sequence(n + count);
    const int32_t n_vocab = m->weights().shape.n_vocab;
    const float* logits = session.eval(ids, n);
    for (size_t i = 0; i < count; i++) {
      if (i > 0) logits = session.eval(out + i - 1, 1);
      out[i] = static_cast<int32_t>(std::max_element(logits, logits + n_vocab) - logits);
      if (progress) progress(i + 1);
    }
    return 0;
  });
}

int rksim_next(rksim_model* m, const int32_t* ids, size_t n, size_t kept, size_t room, float* out) {
  return guarded(-1, [&] {
    if (n == 0) throw rksim::Error("one token at least goes before");
    rksim::Session& session = kept ? m->going_on(kept, n) : m->sequence(std::max(room, n));
    const float* logits = session.eval(ids, n);
    std::copy(logits, logits + m->weights().shape.n_vocab, out);
    return 0;
  });
}

int rksim_embed(rksim_model* m, const int32_t* ids, size_t n, float* x) {
  return guarded(-1, [&] {
    m->sequence(n).embed(ids, n, x);
    return 0;
  });
}

int rksim_layer(rksim_model* m, int layer, const float* x, size_t n, float* y) {
  return guarded(-1, [&] {
    if (layer < 0 || layer >= m->weights().shape.n_layers)
      throw rksim::Error("there is no layer " + std::to_string(layer));
    m->sequence(n).run_layer(layer, x, n, y);
    return 0;
  });
}

int rksim_linear(rksim_model* m, const char* tensor, const float* x, size_t n, float* y) {
  return guarded(-1, [&] {
    const rksim::Linear* linear = m->weights().linear(tensor);
    if (!linear) throw rksim::Error(std::string("there is no linear layer called ") + tensor);
    m->sequence(n).run_linear(*linear, x, n, y);
    return 0;
  });
}

int rksim_gemm_i8(const char* kernel, const int8_t* w, const int8_t* x, int64_t rows, int64_t k, int64_t tokens,
                  int32_t* acc) {
  return guarded(-1, [&] {
    const rksim::Kernels& chosen = kernel ? rksim::kernels_by_name(kernel) : rksim::kernels();
    rksim::gemm_i8(chosen, w, x, rows, k, tokens, acc);
    return 0;
  });
}

}  // extern "C"
