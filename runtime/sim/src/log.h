// Log lines on stderr, worded as the real runtime's are. One write a line: those of several threads do not mix.
#pragma once
#include <cstdio>
#include <exception>
#include <new>
#include <string>

namespace rksim {

inline void log_text(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stderr); }
inline void log_line(const char* tag, const std::string& text) { log_text(std::string(tag) + ": " + text + "\n"); }
inline void log_error(const std::string& text) { log_line("E rkllm", text); }
inline void log_warning(const std::string& text) { log_line("W rkllm", text); }

// Runs f; an exception becomes a log line that begins with `what`, and -1.
template <class F>
int guarded(const char* what, F&& f) noexcept {
  try {
    return f();
  } catch (const std::bad_alloc&) {
    log_error(std::string(what) + ": out of memory");
  } catch (const std::exception& error) {
    log_error(std::string(what) + ": " + error.what());
  } catch (...) {
    log_error(std::string(what) + ": unknown exception");
  }
  return -1;
}

}  // namespace rksim
