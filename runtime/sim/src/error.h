// The one exception of the engine: its text is a sentence for the user. Never crosses a library boundary.
#pragma once
#include <stdexcept>

namespace rksim {
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
}  // namespace rksim
