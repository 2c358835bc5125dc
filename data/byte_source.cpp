#include "data/byte_source.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace hearth {
namespace {

constexpr size_t kInputBytes = 1 << 20;

class PlainSource final : public ByteSource {
 public:
  PlainSource(FileSystem& fs, const std::string& path) : file_(fs.open(path)) {}
  size_t read(std::span<char> out) override {
    const auto size =
        static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(out.size()), file_->size() - at_));
    file_->read_at(at_, std::as_writable_bytes(out.first(size)));
    at_ += static_cast<int64_t>(size);
    return size;
  }
  int64_t raw_position() const override { return at_; }

 private:
  std::unique_ptr<ReadableFile> file_;
  int64_t at_ = 0;
};

// Feeds compressed pieces to a decoder.
class CompressedInput {
 public:
  CompressedInput(FileSystem& fs, const std::string& path) : source_(fs, path), buffer_(kInputBytes) {}
  bool refill() {  // false at the end of the file
    piece_ = std::span(buffer_).first(source_.read(buffer_));
    return !piece_.empty();
  }
  std::span<char> piece() const { return piece_; }
  void consume(size_t bytes) { piece_ = piece_.subspan(bytes); }
  int64_t position() const { return source_.raw_position() - static_cast<int64_t>(piece_.size()); }

 private:
  PlainSource source_;
  std::vector<char> buffer_;
  std::span<char> piece_;
};

class GzipSource final : public ByteSource {
 public:
  GzipSource(FileSystem& fs, const std::string& path) : path_(path), input_(fs, path) {
    HEARTH_CHECK(inflateInit2(&stream_, 15 + 32) == Z_OK, Internal,
                 "zlib: inflateInit2 failed");  // +32: gzip or zlib
  }
  ~GzipSource() override { inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  size_t read(std::span<char> out) override {
    size_t done = 0;
    while (done < out.size()) {
      const bool at_end = input_.piece().empty() && !input_.refill();
      if (at_end && between_members_) break;
      const size_t made =
          inflate_some(out.subspan(done));  // also at the end: the decoder may hold more output
      HEARTH_CHECK(!at_end || made > 0 || between_members_, BadInput,
                   "{}: gzip data ends early, at byte {}; the file is truncated", path_, input_.position());
      done += made;
    }
    return done;
  }
  int64_t raw_position() const override { return input_.position(); }

 private:
  size_t inflate_some(std::span<char> out) {
    if (between_members_) inflateReset(&stream_);
    between_members_ = false;
    const size_t room = std::min<size_t>(out.size(), size_t{1} << 30);  // zlib counts in 32 bits
    stream_.next_in = reinterpret_cast<Bytef*>(input_.piece().data());
    stream_.avail_in = static_cast<uInt>(input_.piece().size());
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(room);
    const int status = inflate(&stream_, Z_NO_FLUSH);
    HEARTH_CHECK(status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR, BadInput,
                 "{}: damaged gzip data near byte {}: {}", path_, input_.position(),
                 stream_.msg != nullptr ? stream_.msg : "unknown reason");
    input_.consume(input_.piece().size() - stream_.avail_in);
    between_members_ = status == Z_STREAM_END;
    return room - stream_.avail_out;
  }
  std::string path_;
  CompressedInput input_;
  z_stream stream_{};
  bool between_members_ = false;
};

class ZstdSource final : public ByteSource {
 public:
  ZstdSource(FileSystem& fs, const std::string& path)
      : path_(path), input_(fs, path), stream_(ZSTD_createDCtx()) {
    HEARTH_CHECK(stream_ != nullptr, Internal, "zstd: no memory for a decoder");
  }
  size_t read(std::span<char> out) override {
    ZSTD_outBuffer target{out.data(), out.size(), 0};
    while (target.pos < target.size) {
      const bool at_end = input_.piece().empty() && !input_.refill();
      if (at_end && frame_done_) break;
      ZSTD_inBuffer piece{input_.piece().data(), input_.piece().size(), 0};
      const size_t before = target.pos;
      const size_t status =
          ZSTD_decompressStream(stream_.get(), &target, &piece);  // may hold output without input
      HEARTH_CHECK(!ZSTD_isError(status), BadInput, "{}: damaged zstd data near byte {}: {}", path_,
                   input_.position(), ZSTD_getErrorName(status));
      frame_done_ = status == 0;
      HEARTH_CHECK(!at_end || target.pos > before || frame_done_, BadInput,
                   "{}: zstd data ends early, at byte {}; the file is truncated", path_, input_.position());
      input_.consume(piece.pos);
    }
    return target.pos;
  }
  int64_t raw_position() const override { return input_.position(); }

 private:
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::string path_;
  CompressedInput input_;
  std::unique_ptr<ZSTD_DCtx, Free> stream_;
  bool frame_done_ = false;
};

}  // namespace

Compression compression_of(const std::string& path) {
  if (path.ends_with(".gz")) return Compression::Gzip;
  if (path.ends_with(".zst")) return Compression::Zstd;
  return Compression::None;
}

std::unique_ptr<ByteSource> open_byte_source(FileSystem& fs, const std::string& path) {
  switch (compression_of(path)) {
    case Compression::Gzip:
      return std::make_unique<GzipSource>(fs, path);
    case Compression::Zstd:
      return std::make_unique<ZstdSource>(fs, path);
    default:
      return std::make_unique<PlainSource>(fs, path);
  }
}

}  // namespace hearth
