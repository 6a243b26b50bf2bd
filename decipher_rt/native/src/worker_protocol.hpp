// What host and worker tell each other, as bytes.
#pragma once

#include "byte_stream.hpp"
#include "session.hpp"

namespace decipher {

void put_options(ByteWriter& writer, const SessionOptions& options);
SessionOptions get_options(ByteReader& reader);

void put_form(ByteWriter& writer, const SeriesForm& form);
SeriesForm get_form(ByteReader& reader);

// The manifest goes as the bundle's own text, so that the host checks it as it would its own.
void put_description(ByteWriter& writer, const Description& description);
Description get_description(ByteReader& reader);

void put_result(ByteWriter& writer, const Result& result);
Result get_result(ByteReader& reader);

}  // namespace decipher
