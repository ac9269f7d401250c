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

// RKLLM_LOG_LEVEL, the real runtime's own: from 1 on, a run's figures are printed.
bool figures_setting();

}  // namespace rksim
