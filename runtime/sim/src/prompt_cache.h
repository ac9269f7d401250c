// Keys and values of a prompt, kept in a file so that prompts with the same beginning need not compute them again.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace rksim {

// What keys and values depend on besides the tokens. Two that differ in anything cannot share them.
struct CacheKey {
  uint32_t model = 0;       // checksum of the artifact's header, which holds those of its tensors
  uint32_t lora = 0;        // checksum of the adapter; 0: none
  uint32_t arithmetic = 0;  // Session::arithmetic()
};

struct PromptCache {
  CacheKey key;
  std::vector<int32_t> ids;
  std::vector<uint8_t> kv;  // [layers][k, v][kv heads][ids][head_dim], as Session holds them
};

// A file appears whole or not at all. Throws Error.
void write_prompt_cache(const std::string& path, const PromptCache& cache);
// `token_bytes`: of one token's keys and values in all layers. Throws Error when the file is damaged or not of this
// model; another adapter is no error.
PromptCache read_prompt_cache(const std::string& path, const CacheKey& key, size_t token_bytes);

}  // namespace rksim
