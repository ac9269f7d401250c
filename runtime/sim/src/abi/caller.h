// Whether what a caller gave can be this release's: a program that was compiled with another one's header sends structs
// of another layout, which here are nonsense. It is told so, and nothing of it is followed.
#pragma once
#include <cstddef>
#include <cstring>
#include <string>

#include "../error.h"

namespace rksim::abi {

// Whether memory can be read at an address, or executed: asked of the system, so that a wrong one ends nothing.
bool readable(const void* address);
bool executable(const void* address);

// A struct as its caller has it. It may be shorter in another release, so this reads as no checked code may.
void copy_unchecked(void* to, const void* from, size_t bytes);

template <class T>
T copied(const T* from) {
  T to;
  copy_unchecked(&to, from, sizeof to);
  return to;
}

// A caller's enum or bool may hold any bits, which C++ may not read as such.
template <class Whole, class T>
Whole raw(const T& value) {
  static_assert(sizeof(T) == sizeof(Whole));
  Whole number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

[[noreturn]] void refuse_caller(const std::string& why, const char* releases);

inline void expect(bool plausible, const std::string& why, const char* releases) {
  if (!plausible) refuse_caller(why, releases);
}

// `name` may be NULL.
inline void expect_readable(const void* pointer, const char* name, const char* releases) {
  expect(!pointer || readable(pointer), std::string(name) + " is no readable address", releases);
}

}  // namespace rksim::abi
