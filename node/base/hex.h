/* hex: bytes to and from hexadecimal text. */
#ifndef TRIBUTARY_BASE_HEX_H
#define TRIBUTARY_BASE_HEX_H

#include <stddef.h>
#include <stdint.h>

/* out [2 * n + 1]: lower-case digits and a NUL; no 0x. Returns out. */
char *hex_encode(char *out, const uint8_t *bytes, size_t n);

/* out [2 * n + 3]: "0x" and as above. Returns out. */
char *hex_encode_0x(char *out, const uint8_t *bytes, size_t n);

/* Parses exactly 2 * n hexadecimal digits (either case), with or without a leading 0x, and
 * nothing after them, into out [n]. Returns 0, or -1 when text is anything else (out undefined). */
int hex_decode(uint8_t *out, size_t n, const char *text);

/* The value of one digit, or -1. */
int hex_digit(char c);

#endif
