// The least that counts as a whole cubin: an ELF header, and sections that lie where it says.
#pragma once

#include <elf.h>

#include <cstring>
#include <string>
#include <vector>

inline std::string cubin(std::vector<Elf64_Shdr> sections = {}) {
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_shoff = sizeof header;
    header.e_shentsize = sizeof(Elf64_Shdr);
    header.e_shnum = static_cast<Elf64_Half>(sections.size());
    std::string file(reinterpret_cast<const char*>(&header), sizeof header);
    file.append(reinterpret_cast<const char*>(sections.data()), sections.size() * sizeof(Elf64_Shdr));
    return file + "code";
}
