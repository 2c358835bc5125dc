#include "parallel/pipeline/timeline.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace hearth {
namespace {

struct Look {
  ActionKind kind;
  std::string_view letter, colour, meaning;
};
constexpr std::array kLooks{
    Look{ActionKind::Forward, "F", "#4c78a8", "forward"},
    Look{ActionKind::Backward, "B", "#e45756", "backward"},
    Look{ActionKind::BackwardInput, "B", "#f58518", "backward of the input"},
    Look{ActionKind::BackwardWeight, "W", "#54a24b", "weight gradient"},
    Look{ActionKind::ForwardBackward, "F", "#b279a2", "forward and backward, overlapped"},
};

const Look& look(ActionKind kind) {
  return *std::find_if(kLooks.begin(), kLooks.end(), [&](const Look& l) { return l.kind == kind; });
}

std::string label(const PipelineSchedule& schedule, const Action& action) {
  const auto one = [&](std::string_view letter, int chunk, int micro) {
    return schedule.chunks == 1 ? fmt::format("{}{}", letter, micro)
                                : fmt::format("{}{}.{}", letter, micro, chunk);
  };
  std::string text = one(look(action.kind).letter, action.chunk, action.micro);
  if (action.kind == ActionKind::ForwardBackward)
    text += "+" + one("B", action.backward_chunk, action.backward_micro);
  return text;
}

// Scale of a picture: all labels fit into their actions, unless that takes more than twice what half of them
// need (the few short actions of an uneven model must not make the picture endless). `room(length)`: what a
// label takes.
template <class Room>
double scale_for_labels(const PipelineSchedule& schedule, const Simulation& simulation, const Room& room) {
  std::vector<double> needs;
  for (const SimulatedRank& rank : simulation.ranks)
    for (const SimulatedAction& a : rank.actions)
      if (a.end > a.start) needs.push_back(room(label(schedule, a.action).size()) / (a.end - a.start));
  if (needs.empty()) return 1;
  std::sort(needs.begin(), needs.end());
  return std::min(needs.back(), 2 * needs[needs.size() / 2]);
}

// An action takes at least one character; what follows it may stand that much later.
std::string line(const PipelineSchedule& schedule, const SimulatedRank& rank, double scale, double total) {
  std::string text;
  const auto at = [&](double seconds) { return static_cast<size_t>(std::llround(seconds * scale)); };
  const auto idle_until = [&](size_t end) {
    if (text.size() < end) text += std::string(end - text.size() - 1, '.') + " ";
  };
  for (const SimulatedAction& a : rank.actions) {
    idle_until(at(a.start));
    const size_t room = std::max(text.size() + 1, at(a.end)) - text.size();
    const std::string name = label(schedule, a.action);
    std::string shown =
        name.size() < std::max<size_t>(room, 2) ? name : std::string(look(a.action.kind).letter);
    if (shown.size() + 1 < room) shown += std::string(room - 1 - shown.size(), '-');
    text += shown + (room > 1 ? " " : "");
  }
  idle_until(at(total));
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

// Pixels.
constexpr double kRowHeight = 26, kRowGap = 6, kLeft = 70, kTop = 64, kPerCharacter = 7;

struct Scale {
  double pixels_per_second;
  double x(double seconds) const { return kLeft + seconds * pixels_per_second; }
};

std::string rectangle(double x, double y, double width, double height, std::string_view colour,
                      double opacity, const std::string& tooltip) {
  return fmt::format(
      "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\" "
      "fill-opacity=\"{:.2f}\" "
      "stroke=\"white\" stroke-width=\"0.5\"><title>{}</title></rect>\n",
      x, y, width, height, colour, opacity, tooltip);
}

std::string words(double x, double y, std::string_view anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.2f}\" y=\"{:.2f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor, text);
}

std::string legend(const PipelineSchedule& schedule, const Simulation& simulation) {
  std::string out;
  double x = kLeft;
  for (const Look& l : kLooks) {
    const bool used = std::any_of(simulation.ranks.begin(), simulation.ranks.end(), [&](const auto& rank) {
      return std::any_of(rank.actions.begin(), rank.actions.end(),
                         [&](const SimulatedAction& a) { return a.action.kind == l.kind; });
    });
    if (!used) continue;
    out += rectangle(x, 34, 14, 14, l.colour, 1, std::string(l.meaning));
    out += words(x + 20, 45, "start", std::string(l.meaning));
    x += 40 + kPerCharacter * static_cast<double>(l.meaning.size());
  }
  if (schedule.chunks > 1) out += words(x, 45, "start", "micro.chunk, later chunks lighter");
  return out;
}

std::string boxes(const PipelineSchedule& schedule, const SimulatedRank& rank, double y, const Scale& scale) {
  std::string out;
  for (const SimulatedAction& a : rank.actions) {
    const double x = scale.x(a.start), width = scale.x(a.end) - x;
    const double opacity = 1 - .45 * a.action.chunk / std::max(1, schedule.chunks - 1);
    out += rectangle(x, y, width, kRowHeight, look(a.action.kind).colour, opacity,
                     fmt::format("{}: {:.6g} to {:.6g}", describe(a.action), a.start, a.end));
    const std::string text = label(schedule, a.action);
    if (width >= kPerCharacter * static_cast<double>(text.size()))
      out += words(x + width / 2, y + kRowHeight / 2 + 4, "middle", text);
  }
  return out;
}

}  // namespace

std::string timeline_text(const PipelineSchedule& schedule, const Simulation& simulation) {
  const double scale =
      scale_for_labels(schedule, simulation, [](size_t length) { return static_cast<double>(length) + 1; });
  std::string text;
  for (size_t r = 0; r < simulation.ranks.size(); ++r)
    text += fmt::format("{:>3} | {}\n", r, line(schedule, simulation.ranks[r], scale, simulation.total));
  return text;
}

std::string timeline_svg(const PipelineSchedule& schedule, const Simulation& simulation) {
  constexpr double kWidest = 16000;
  const double wanted = scale_for_labels(
      schedule, simulation, [](size_t length) { return kPerCharacter * static_cast<double>(length) + 4; });
  const Scale scale{simulation.total > 0 ? std::min(wanted, kWidest / simulation.total) : 1};
  const double width = std::max(scale.x(simulation.total) + 20, 720.0);
  const double height = kTop + static_cast<double>(simulation.ranks.size()) * (kRowHeight + kRowGap) + 10;
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} "
      "{1:.0f}\" "
      "font-family=\"monospace\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  out += words(kLeft, 20, "start",
               fmt::format("{}: {} stages, {} chunk(s) each, {} micro-batches, bubble {:.2f}%",
                           config_name(schedule.kind), schedule.stages, schedule.chunks, schedule.micros,
                           100 * simulation.bubble_fraction()));
  out += legend(schedule, simulation);
  double y = kTop;
  for (size_t r = 0; r < simulation.ranks.size(); ++r, y += kRowHeight + kRowGap) {
    out += words(kLeft - 10, y + kRowHeight / 2 + 4, "end", fmt::format("stage {}", r));
    out +=
        fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"#eeeeee\"/>\n",
                    kLeft, y, scale.x(simulation.total) - kLeft, kRowHeight);
    out += boxes(schedule, simulation.ranks[r], y, scale);
  }
  return out + "</svg>\n";
}

}  // namespace hearth
