// What a configuration struct needs from Hearth: it lives with its component and has
//   template <class V> void visit(V&& v) { v("lr", lr, OnResume::MayChange, "peak learning rate"); ... }
//   void validate(ConfigErrors& e) const;   // collects every violation; NaN fails each test by construction
// One visit() drives parsing (launch/config_parser.h), printing, hashing, the resume contract and
// configs/README.md. Field types a visitor must take: bool, int64_t, double, std::string, std::optional of
// those, std::vector of those or of visitable structs, visitable structs.
#pragma once

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hearth {

// What may happen to a key between the run that wrote a checkpoint and the run that resumes it.
enum class OnResume {
  Frozen,       // the run would be another run; refused
  MayChange,    // printed, accepted
  MustConfirm,  // accepted with --confirm section.key
};

// Collects violations with their full key, so that a user sees all of them at once.
class ConfigErrors {
 public:
  struct Entry {
    std::string key;  // "optimizer.lr"
    std::string message;
  };
  // Appends `name` to the current section for the duration of the guard.
  class Scope {
   public:
    Scope(ConfigErrors& errors, std::string_view name) : errors_(errors), saved_(errors.prefix_) {
      errors_.prefix_ += errors_.prefix_.empty() ? std::string(name) : "." + std::string(name);
    }
    ~Scope() { errors_.prefix_ = std::move(saved_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ConfigErrors& errors_;
    std::string saved_;
  };

  template <class... Args>
  void require(bool holds, std::string_view key, fmt::format_string<Args...> format, Args&&... args) {
    if (!holds) add(key, fmt::format(format, std::forward<Args>(args)...));
  }
  void add(std::string_view key, std::string message) {
    entries_.push_back(
        {prefix_.empty() ? std::string(key) : prefix_ + "." + std::string(key), std::move(message)});
  }
  // One of a fixed set of words.
  void one_of(std::string_view value, std::string_view key, const std::vector<std::string_view>& choices) {
    std::string list;
    for (const auto choice : choices) {
      if (choice == value) return;
      list += (list.empty() ? "" : ", ") + std::string(choice);
    }
    add(key, fmt::format("must be one of {}, got '{}'", list, value));
  }
  const std::vector<Entry>& entries() const { return entries_; }
  bool empty() const { return entries_.empty(); }

 private:
  std::string prefix_;
  std::vector<Entry> entries_;
};

}  // namespace hearth
