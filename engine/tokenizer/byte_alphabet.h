/* byte_alphabet: the characters by which byte-level tokenizers spell bytes.
 *
 * GPT-2 gave each byte a printable character: the printable ones of Latin-1 stand for themselves
 * (0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF), the other 68 are U+0100 and on, in ascending order. So a space
 * is U+0120 "Ġ" and a newline U+010A "Ċ". */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_BYTE_ALPHABET_H
#define TRIBUTARY_ENGINE_TOKENIZER_BYTE_ALPHABET_H

#include <stdbool.h>
#include <stdint.h>

enum { BYTE_ALPHABET_END = 0x100 + 68 }; /* all its characters are below */

static inline bool byte_alphabet_is_itself(uint32_t c)
{
    return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || (c >= 0xAE && c <= 0xFF);
}

static inline uint32_t byte_alphabet_char(uint8_t byte)
{
    if (byte_alphabet_is_itself(byte))
        return byte;
    /* 0x00-0x20 are the first 33, 0x7F-0xA0 the next 34, 0xAD the last. */
    return byte <= 0x20 ? 0x100u + byte : byte <= 0xA0 ? 0x121u + byte - 0x7Fu : 0x143u;
}

/* The byte that the character spells, or -1. */
static inline int byte_alphabet_byte(uint32_t c)
{
    if (byte_alphabet_is_itself(c))
        return (int)c;
    if (c < 0x100 || c >= BYTE_ALPHABET_END)
        return -1;
    return c <= 0x120 ? (int)(c - 0x100) : c <= 0x142 ? (int)(c - 0x121 + 0x7F) : 0xAD;
}

#endif
