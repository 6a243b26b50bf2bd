// A test program is a main() full of CHECKs; it fails with the first that does not hold.
#pragma once

#include <cstdlib>
#include <iostream>

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            std::cerr << __FILE__ << ':' << __LINE__ << ": does not hold: " << #condition << '\n'; \
            std::exit(1);                                                                         \
        }                                                                                         \
    } while (false)

// The expression throws decipher::Error with this status; evaluates to its message.
#define CHECK_ERROR(expression, code)                             \
    [&]() -> std::string {                                        \
        try {                                                     \
            (void)(expression);                                   \
        } catch (const decipher::Error& error) {                  \
            CHECK(error.status == (code));                        \
            return error.what();                                  \
        }                                                         \
        CHECK(!"an error was expected from: " #expression);       \
        return {};                                                \
    }()
