#include "caller.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <memory>

namespace rksim::abi {

// The kernel reads a signal set before it finds that there is nothing to be done with it by this `how`.
bool readable(const void* address) {
  constexpr uintptr_t kNullPage = 4096;
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at < kNullPage) return false;
  const int error = errno;
  const long done = syscall(SYS_rt_sigprocmask, ~0, at & ~uintptr_t{7}, nullptr, 8);
  const bool found = done == 0 || errno != EFAULT;
  errno = error;
  return found;
}

// True where the system does not say.
bool executable(const void* address) {
  const std::unique_ptr<FILE, int (*)(FILE*)> maps(std::fopen("/proc/self/maps", "re"), std::fclose);
  if (!maps) return true;
  const auto at = reinterpret_cast<uintptr_t>(address);
  char line[512];
  for (bool begins = true; std::fgets(line, sizeof line, maps.get()); begins = std::strchr(line, '\n') != nullptr) {
    uintptr_t begin, end;
    char rights[5];
    if (!begins || std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &begin, &end, rights) != 3) continue;
    if (at >= begin && at < end) return rights[2] == 'x';
  }
  return false;
}

__attribute__((no_sanitize("address"), noinline)) void copy_unchecked(void* to, const void* from, size_t bytes) {
  auto* out = static_cast<volatile unsigned char*>(to);  // volatile: no memcpy, which a sanitiser would check
  const auto* in = static_cast<const volatile unsigned char*>(from);
  for (size_t i = 0; i < bytes; i++) out[i] = in[i];
}

void refuse_caller(const std::string& why, const char* releases) {
  throw Error(why + ": this looks like a caller of " + releases + ", and this library is " + RKSIM_RELEASE +
              "; compile the program with its header");
}

}  // namespace rksim::abi
