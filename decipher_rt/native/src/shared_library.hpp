// A library of another maker, loaded at run time: one build runs where it is absent, and says what is missing.
#pragma once

#include <string>

namespace decipher {

class SharedLibrary {
public:
    // Looks in `folder` where it is not empty, else where the system looks (our own run path included). The library
    // stays in the process once loaded: its threads and exit handlers may outlive any session.
    static SharedLibrary load(const std::string& folder, const std::string& name, const std::string& advice);

    // Whether it is this very file that was loaded.
    static bool is_loaded(const std::string& folder, const std::string& name);

    template <class Function>
    Function function(const char* name) const {
        return reinterpret_cast<Function>(symbol(name));
    }

private:
    void* symbol(const char* name) const;

    void* handle_ = nullptr;
    std::string name_;
};

}  // namespace decipher
