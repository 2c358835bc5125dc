// dump_samples DATASET SEQ_LENGTH SEED FIRST LAST: the training samples [FIRST, LAST) of a run over one
// dataset, one JSON object a line: {"tokens": [...], "loss_mask": [...], "document_starts": [...]}. For
// train_vs_pytorch.py, which feeds the same batches to another implementation.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/sampler.h"

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: dump_samples DATASET SEQ_LENGTH SEED FIRST LAST\n";
    return 2;
  }
  try {
    const auto fs = hearth::make_posix_file_system();
    std::vector<hearth::WeightedDataset> datasets;
    datasets.push_back({.dataset = hearth::Dataset::open(*fs, argv[1]), .weight = 1.0});
    const hearth::SampleStream stream(std::move(datasets),
                                      {.seq_length = std::stoll(argv[2]), .seed = std::stoull(argv[3])});
    for (int64_t index = std::stoll(argv[4]); index < std::stoll(argv[5]); ++index) {
      const hearth::Sample sample = stream.get(index);
      std::cout << nlohmann::json{{"tokens", sample.tokens},
                                  {"loss_mask", sample.loss_mask},
                                  {"document_starts", sample.document_starts}}
                       .dump()
                << "\n";
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
