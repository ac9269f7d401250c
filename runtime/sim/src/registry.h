// Every live handle of this process, and what becomes of them where it forks.
#pragma once
#include <memory>

#include "runtime.h"

namespace rksim {

using Handle = void*;  // a caller's, whatever its release

enum class Standing {
  kUnknown,  // not one of rkllm_init's, or destroyed
  kLive,
  kHollow,  // rkllm_init lied about it (RKSIM_FAULTS): it has no model behind it
  kLost,    // of the process that forked, where another thread used it at that moment
};

struct Found {
  Standing standing = Standing::kUnknown;
  std::shared_ptr<Runtime> runtime;  // of a live one, kept alive as long as this
};

Found look_up(Handle handle);

// Under the runtime's own address; a hollow one (nullptr) under a new one.
Handle enlist(std::shared_ptr<Runtime> runtime);
// False where it was not there. What is behind it is freed when the last call that uses it is over.
bool strike_out(Handle handle);

}  // namespace rksim
