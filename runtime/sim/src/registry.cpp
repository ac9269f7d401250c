#include "registry.h"

#include <pthread.h>

#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "process.h"

namespace rksim {
namespace {

using Handles = std::map<Handle, Found>;

// Never freed: a run may still be under way when the process exits.
struct Registry {
  std::mutex mutex;
  Handles all;
};
Registry* current = nullptr;

// What a fork holds, so that nothing is half-done in the child: the lock of the registry and of each runtime. Waits are
// bounded: a fork from a signal handler may have interrupted who holds one, and then the child does without the handle.
struct Fork {
  SignalsHeld held;
  bool whole = false;               // the registry's lock was to be had
  std::map<Handle, bool> runtimes;  // and that of each
};
thread_local std::optional<Fork> fork_under_way;

void before_fork() {
  Fork& fork = fork_under_way.emplace();
  fork.whole = lock_within_a_second(current->mutex);
  if (!fork.whole) return;
  for (auto& [handle, found] : current->all)
    if (found.runtime) fork.runtimes[handle] = found.runtime->lock_for_fork();
}

void in_parent() {
  const Fork& fork = *fork_under_way;
  for (const auto& [handle, locked] : fork.runtimes)
    if (locked) current->all[handle].runtime->unlock_after_fork();
  if (fork.whole) current->mutex.unlock();
  fork_under_way.reset();
}

void in_child() {
  const Fork& fork = *fork_under_way;
  if (!fork.whole) current = new Registry;  // who knows what state the other is in
  for (const auto& [handle, locked] : fork.runtimes) {
    Found& found = current->all[handle];
    const bool stays = locked && found.runtime->survives_fork();
    if (locked) found.runtime->unlock_after_fork();
    if (stays) continue;
    abandon(std::move(found.runtime));
    found = {Standing::kLost, nullptr};
  }
  if (fork.whole) current->mutex.unlock();
  fork_under_way.reset();
}

Registry& registry() {
  static const bool made = [] {
    current = new Registry;
    return pthread_atfork(before_fork, in_parent, in_child) == 0;
  }();
  (void)made;
  return *current;
}

}  // namespace

Found look_up(Handle handle) {
  Registry& r = registry();
  Lock lock(r.mutex);
  const auto it = r.all.find(handle);
  return it == r.all.end() ? Found{} : it->second;
}

Handle enlist(std::shared_ptr<Runtime> runtime) {
  const Handle handle = runtime ? static_cast<Handle>(runtime.get()) : new char;
  Registry& r = registry();
  Lock lock(r.mutex);
  const Standing standing = runtime ? Standing::kLive : Standing::kHollow;
  r.all[handle] = {standing, std::move(runtime)};
  return handle;
}

bool strike_out(Handle handle) {
  Found found;  // freed after the lock is
  Registry& r = registry();
  {
    Lock lock(r.mutex);
    const auto it = r.all.find(handle);
    if (it == r.all.end()) return false;
    found = std::move(it->second);
    r.all.erase(it);
  }
  if (found.standing == Standing::kHollow) delete static_cast<char*>(handle);
  return true;
}

}  // namespace rksim
