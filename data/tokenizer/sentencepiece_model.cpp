#include "data/tokenizer/sentencepiece_model.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

constexpr const char* kWhere = "tokenizer.model";

// The wire format of protocol buffers: a sequence of (field number, wire type, value).
class ProtoReader {
 public:
  struct Field {
    uint32_t number;
    uint32_t wire_type;
    uint64_t integer;        // wire types 0, 1, 5
    std::string_view bytes;  // wire type 2
  };
  explicit ProtoReader(std::string_view data) : data_(data) {}

  std::optional<Field> next() {
    if (pos_ == data_.size()) return std::nullopt;
    const uint64_t key = varint();
    Field field{static_cast<uint32_t>(key >> 3), static_cast<uint32_t>(key & 7), 0, {}};
    HEARTH_CHECK(field.number != 0 && key >> 3 < 1u << 29, BadInput, "{}: bad field number at byte {}",
                 kWhere, pos_);
    switch (field.wire_type) {
      case 0:
        field.integer = varint();
        break;
      case 1:
        field.integer = fixed(8);
        break;
      case 5:
        field.integer = fixed(4);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      default:
        fail(ErrorKind::BadInput, "{}: not a SentencePiece model (wire type {} at byte {})", kWhere,
             field.wire_type, pos_);
    }
    return field;
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    fail(ErrorKind::BadInput, "{}: a number is longer than 64 bits at byte {}", kWhere, pos_);
  }

  uint64_t fixed(size_t size) {
    const std::string_view bytes = take(size);
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) value |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
    return value;
  }

  std::string_view take(uint64_t size) {
    HEARTH_CHECK(size <= data_.size() - pos_, BadInput, "{}: cut short: {} bytes wanted at byte {} of {}",
                 kWhere, size, pos_, data_.size());
    const std::string_view part = data_.substr(pos_, size);
    pos_ += size;
    return part;
  }

  std::string_view data_;
  size_t pos_ = 0;
};

SentencePiece read_piece(std::string_view bytes) {
  SentencePiece piece;
  ProtoReader reader(bytes);
  while (const auto field = reader.next()) {
    if (field->number == 1 && field->wire_type == 2) piece.text = std::string(field->bytes);
    if (field->number == 2 && field->wire_type == 5) {
      const auto bits = static_cast<uint32_t>(field->integer);
      std::memcpy(&piece.score, &bits, 4);
    }
    if (field->number == 3 && field->wire_type == 0) {
      HEARTH_CHECK(field->integer >= 1 && field->integer <= 6, BadInput, "{}: piece type {} is not known",
                   kWhere, field->integer);
      piece.type = static_cast<PieceType>(field->integer);
    }
  }
  return piece;
}

void read_trainer_spec(std::string_view bytes, SentencePieceModel& model) {
  uint64_t model_type = 1;  // the proto's default, unigram
  ProtoReader reader(bytes);
  while (const auto field = reader.next()) {
    if (field->number == 3) model_type = field->integer;
    if (field->number == 24)
      HEARTH_CHECK(field->integer == 0, BadInput, "{}: treat_whitespace_as_suffix is not supported", kWhere);
    if (field->number == 35) model.byte_fallback = field->integer != 0;
    if (field->number == 44) model.unknown_surface = std::string(field->bytes);
  }
  static constexpr std::array kNames{"?", "unigram", "BPE", "word", "char"};
  HEARTH_CHECK(model_type == 2, BadInput, "{}: model type {} is not supported; Hearth reads BPE", kWhere,
               model_type < kNames.size() ? kNames[model_type] : "?");
}

void read_normalizer_spec(std::string_view bytes, SentencePieceModel& model) {
  ProtoReader reader(bytes);
  size_t map_size = 0;
  while (const auto field = reader.next()) {
    if (field->number == 1) model.normalizer_name = std::string(field->bytes);
    if (field->number == 2) map_size = field->bytes.size();
    if (field->number == 3) model.add_dummy_prefix = field->integer != 0;
    if (field->number == 4) model.remove_extra_whitespaces = field->integer != 0;
    if (field->number == 5) model.escape_whitespaces = field->integer != 0;
  }
  HEARTH_CHECK(
      map_size == 0, BadInput,
      "{}: normalizer {:?} with a precompiled character map ({} bytes) is not supported; identity is", kWhere,
      model.normalizer_name, map_size);
}

void check_denormalizer(std::string_view bytes) {
  ProtoReader reader(bytes);
  while (const auto field = reader.next())
    HEARTH_CHECK(field->number != 2 || field->bytes.empty(), BadInput,
                 "{}: a denormalizer map is not supported", kWhere);
}

void check(const SentencePieceModel& model) {
  HEARTH_CHECK(!model.pieces.empty(), BadInput, "{}: no pieces (is it a SentencePiece model?)", kWhere);
  HEARTH_CHECK(static_cast<int64_t>(model.pieces.size()) <= kMaxTokenId + 1, BadInput,
               "{}: {} pieces, at most {}", kWhere, model.pieces.size(), kMaxTokenId + 1);
  std::unordered_set<std::string_view> seen;
  std::array<bool, 256> bytes{};
  int unknown = 0;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const SentencePiece& piece = model.pieces[id];
    HEARTH_CHECK(!piece.text.empty() && unicode::is_valid_utf8(piece.text), BadInput,
                 "{}: piece {} is empty or not UTF-8", kWhere, id);
    HEARTH_CHECK(seen.insert(piece.text).second, BadInput, "{}: piece {:?} is there twice", kWhere,
                 piece.text);
    HEARTH_CHECK(!std::isnan(piece.score), BadInput, "{}: the score of piece {} is not a number", kWhere, id);
    HEARTH_CHECK(piece.type != PieceType::Unused, BadInput,
                 "{}: piece {} is of type UNUSED, which is not supported", kWhere, id);
    unknown += piece.type == PieceType::Unknown;
    if (piece.type != PieceType::Byte) continue;
    const int byte = byte_of_piece(piece.text);
    HEARTH_CHECK(byte >= 0, BadInput, "{}: piece {} is a byte but reads {:?}", kWhere, id, piece.text);
    bytes[static_cast<size_t>(byte)] = true;
  }
  HEARTH_CHECK(unknown == 1, BadInput, "{}: {} unknown pieces, expected one", kWhere, unknown);
  for (size_t byte = 0; byte < 256 && model.byte_fallback; ++byte)
    HEARTH_CHECK(bytes[byte], BadInput, "{}: byte fallback without a piece for byte {}", kWhere, byte);
}

}  // namespace

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return -1;
  int value = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  return error == std::errc() && end == piece.data() + 5 ? value : -1;
}

SentencePieceModel read_sentencepiece_model(std::string_view bytes) {
  SentencePieceModel model;
  bool trainer = false;
  ProtoReader reader(bytes);
  while (const auto field = reader.next()) {
    if (field->wire_type != 2) continue;
    if (field->number == 1) model.pieces.push_back(read_piece(field->bytes));
    if (field->number == 2) read_trainer_spec(field->bytes, model), trainer = true;
    if (field->number == 3) read_normalizer_spec(field->bytes, model);
    if (field->number == 5) check_denormalizer(field->bytes);
  }
  HEARTH_CHECK(trainer, BadInput, "{}: no trainer_spec (is it a SentencePiece model? it has {} bytes)",
               kWhere, bytes.size());
  check(model);
  return model;
}

}  // namespace hearth
