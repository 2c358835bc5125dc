#include "launch/config_reference.h"

#include "base/config_flatten.h"
#include "trainer/experiment_config.h"

namespace hearth {
namespace {

constexpr const char* kHead =
    R"(# Experiment files

One YAML file says what a run is: `hearth train configs/smoke.yaml`. Each file here is complete and is parsed and dry-run
by the tests; `models/` has the published shapes that `model.preset` takes. To start your own, copy one.

Unknown keys, duplicate keys, wrong types and values out of range are errors, all reported at once with file:line:column.
`--set section.key=value` overrides a key for one run (the value is YAML: `--set 'data.train=[{path: shards/a}]'`);
`--print-config` shows the resolved file with the origin of every key; `--dry-run` shows what would run. Relative paths
are relative to the working directory. Only `model`, `data.train` and `training.train_iters` must be given.

At a resume a key is *frozen* (a change is another run, refused), *may change* (printed, accepted) or *must be confirmed*
(`--confirm section.key`).

This page is made from the program's own tables: `HEARTH_UPDATE=1 build/tests/launch/launch_config_reference_test`.
)";

std::string_view words(OnResume on_resume) {
  switch (on_resume) {
    case OnResume::Frozen:
      return "frozen";
    case OnResume::MayChange:
      return "may change";
    case OnResume::MustConfirm:
      return "must be confirmed";
  }
  return "";
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

void add_row(std::string& out, const std::string& key, const std::string& value, OnResume on_resume,
             std::string_view doc) {
  out += fmt::format("| `{}` | `{}` | {} | {} |\n", key, value, words(on_resume), escaped(doc));
}

template <class T>
void add_rows(std::string& out, const std::string& prefix, T& config) {
  config.visit([&](std::string_view name, auto& field, OnResume on_resume, std::string_view doc) {
    using Field = std::decay_t<decltype(field)>;
    const std::string key = prefix + std::string(name);
    if constexpr (detail::is_vector_field<Field>) {
      add_row(out, key, detail::list_text(field), on_resume, doc);
      using Element = typename Field::value_type;
      if constexpr (!detail::is_scalar_field<Element>) {
        Element element;
        add_rows(out, key + "[].", element);
      }
    } else if constexpr (detail::is_scalar_field<Field> || detail::is_optional_field<Field>) {
      add_row(out, key, canonical_text(field), on_resume, doc);
    } else {
      add_rows(out, key + ".", field);
    }
  });
}

}  // namespace

std::string config_reference_markdown() {
  std::string out = kHead;
  ExperimentConfig config;
  config.visit([&](std::string_view name, auto& section, OnResume, std::string_view doc) {
    out += fmt::format("\n## {}: {}\n\n| key | default | at a resume | meaning |\n|---|---|---|---|\n", name,
                       doc);
    add_rows(out, "", section);
  });
  return out;
}

}  // namespace hearth
