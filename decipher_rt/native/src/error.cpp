#include "error.hpp"

#include <array>
#include <charconv>
#include <cstdio>
#include <new>
#include <sstream>
#include <system_error>

namespace decipher {

namespace {

constexpr std::size_t longest_message = 1024;
constexpr std::size_t longest_foreign_message = 300;

// A fixed buffer: remembering that there is no memory must not need any.
thread_local std::array<char, longest_message> message_of_thread{};

}  // namespace

const char* last_error() noexcept { return message_of_thread.data(); }

drt_status remember(drt_status status, const char* message) noexcept {
    std::snprintf(message_of_thread.data(), message_of_thread.size(), "%s", message);
    for (char& c : message_of_thread)
        if (c == '\n' || c == '\r') c = ' ';
    return status;
}

drt_status remember_current() noexcept {
    try {
        throw;
    } catch (const Error& error) {
        return remember(error.status, error.what());
    } catch (const std::bad_alloc&) {
        return remember(DRT_ERROR_MEMORY, "out of memory");
    } catch (const std::system_error& error) {
        if (error.code() != std::errc::resource_unavailable_try_again) return remember(DRT_ERROR_INTERNAL, error.what());
        return remember(DRT_ERROR_MEMORY, "the system gives this process no more threads: raise its limit (RLIMIT_NPROC, pids.max), or ask for fewer");
    } catch (const std::exception& error) {
        return remember(DRT_ERROR_INTERNAL, error.what());
    } catch (...) {
        return remember(DRT_ERROR_INTERNAL, "an exception of unknown type");
    }
}

std::string general(double value, int digits) {
    std::array<char, 64> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::general, digits).ptr;
    return {text.data(), end};
}

std::string shape_text(const std::vector<std::size_t>& shape) {
    std::string text;
    for (const std::size_t size : shape) text += (text.empty() ? "(" : ", ") + std::to_string(size);
    return text.empty() ? "()" : text + ")";
}

bool lacked_memory(const std::string& said) { return said.find("bad_alloc") != std::string::npos; }

std::string plain(std::string_view text) {
    std::string said;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto c = static_cast<unsigned char>(text[i]), next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
        const bool further_control = c == 0xc2 && next >= 0x80 && next < 0xa0;  // U+0080 to U+009F, in UTF-8
        if (c > ' ' && c != 0x7f && !further_control)
            said += text[i];
        else if (!said.empty() && said.back() != ' ')
            said += ' ';
        i += further_control ? 1 : 0;
    }
    if (!said.empty() && said.back() == ' ') said.pop_back();
    return said;
}

std::string one_line(const std::string& message) {
    std::istringstream lines(message);
    std::string said, first;
    for (std::string line; std::getline(lines, line);) {
        const auto begin = line.find_first_not_of(" \t\r");
        if (begin == std::string::npos) continue;
        line = line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1);
        if (first.empty()) first = line;
        if (line.rfind("Exception from", 0) == 0 || line.rfind("Check '", 0) == 0) continue;
        said += (said.empty() ? "" : " ") + line;
    }
    return (said.empty() ? first : said).substr(0, longest_foreign_message);
}

}  // namespace decipher
