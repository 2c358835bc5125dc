// A replayed schedule as a picture, for people: `hearth plan --timeline`. Pure and thread-safe.
#pragma once

#include <string>

#include "parallel/pipeline/simulator.h"

namespace hearth {

// One line per rank, equal times equally wide. An action begins with its letter and micro number (and .chunk
// where a rank has several; the letter alone where there is no room), and dashes fill the rest of its time: F
// forward, B backward (of the input alone where a W follows), W weight gradient, F+B the overlapped pair.
// Dots: idle. ASCII; ends with a newline.
std::string timeline_text(const PipelineSchedule& schedule, const Simulation& simulation);

// The same as a standalone SVG document: one row per rank, time to the right, one colour per kind (later
// chunks lighter), a legend, and the name and the times of an action as its tooltip.
std::string timeline_svg(const PipelineSchedule& schedule, const Simulation& simulation);

}  // namespace hearth
