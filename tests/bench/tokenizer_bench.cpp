// Encoding speed: tokenizer_bench TOKENIZER TEXT_FILE [THREADS]. The text is cut into documents of about 4 KB
// at line ends, as in a corpus of web pages; every thread encodes all of them three times and the best time
// counts. tokenizer_bench.py measures `tokenizers` in the same way.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <thread>

#include "base/error.h"
#include "data/tokenizer/tokenizer.h"

namespace {

using namespace hearth;
constexpr size_t kDocumentBytes = 4096;

std::vector<std::string_view> documents(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const size_t end =
        text.size() <= kDocumentBytes ? std::string_view::npos : text.find('\n', kDocumentBytes);
    const size_t size = end == std::string_view::npos ? text.size() : end + 1;
    out.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return out;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void bench(const std::string& path, const std::string& text_file, int num_threads) {
  const auto fs = make_posix_file_system();
  const std::string text = fs->read_text(text_file);
  const auto load_start = std::chrono::steady_clock::now();
  const auto tokenizer = Tokenizer::load(*fs, path);
  const double load_seconds = seconds_since(load_start);
  const auto parts = documents(text);
  double best = 1e30;
  size_t num_tokens = 0;
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    std::vector<size_t> counts(static_cast<size_t>(num_threads));
    for (auto& count : counts)
      threads.emplace_back([&] {
        for (const auto part : parts) count += tokenizer->encode(part, SpecialTokens::Skip).size();
      });
    for (auto& thread : threads) thread.join();
    best = std::min(best, seconds_since(start));
    num_tokens = counts[0];
  }
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  fmt::print("{:<40} {:>6.1f} MB {:>9} tokens  load {:.2f} s  {} thread(s): {:.1f} MB/s each\n", path,
             megabytes, num_tokens, load_seconds, num_threads, megabytes / best);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: tokenizer_bench TOKENIZER TEXT_FILE [THREADS]\n";
    return 2;
  }
  try {
    bench(argv[1], argv[2], argc > 3 ? std::stoi(argv[3]) : 1);
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return exit_code(error.kind());
  }
}
