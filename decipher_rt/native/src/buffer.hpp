// Memory that is about to be overwritten, and is not cleared first.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace decipher {

// std::vector asks it to make an element without a value; a std::allocator would make a zero.
template <class Value>
struct Uninitialised : std::allocator<Value> {
    template <class Other>
    struct rebind {
        using other = Uninitialised<Other>;
    };

    using std::allocator<Value>::allocator;
    template <class Other>
    Uninitialised(const Uninitialised<Other>&) {}

    template <class Other>
    void construct(Other* place) {
        ::new (static_cast<void*>(place)) Other;
    }
    template <class Other, class... Arguments>
    void construct(Other* place, Arguments&&... arguments) {
        ::new (static_cast<void*>(place)) Other(std::forward<Arguments>(arguments)...);
    }
};

template <class Value>
using Buffer = std::vector<Value, Uninitialised<Value>>;

using Bytes = Buffer<std::byte>;

}  // namespace decipher
