// What the environment says of the parts where the real runtime is not known, or is to be seen from outside.
// docs/sim-runtime.md lists the variables. All throw Error on a value that has no meaning.
#pragma once
#include <cstdint>
#include <optional>

namespace rksim {

// RKSIM_SEED; one of the system's entropy where there is none.
uint64_t seed_setting();

// RKSIM_IS_RUNNING: whether rkllm_is_running answers as the header of 1.1 says (0 while running) and not as measured.
bool is_running_by_header_setting();

// RKSIM_PAST_CONTEXT: how many tokens an answer may go on past a full context; none: without end.
std::optional<int64_t> past_context_setting();

// Of what is not known of 1.2 and later, each true where nothing is said but for the last two.
bool end_token_told_setting();           // RKSIM_END_TOKEN: the token that ends an answer comes, without text
bool finish_after_pause_setting();       // RKSIM_PAUSE: FINISH comes after a run that its callback paused
bool negative_keep_is_prompt_setting();  // RKSIM_N_KEEP: n_keep below 0 keeps the prompt
bool last_logits_setting();              // RKSIM_LOGITS: of the last token, not of all
bool half_embeddings_setting();          // RKSIM_EMBED_CALLBACK: it writes float16, not float32

// RKLLM_LOG_LEVEL, the real runtime's own: from 1 on, a run's figures are printed.
bool figures_setting();

}  // namespace rksim
