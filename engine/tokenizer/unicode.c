/* unicode: see unicode.h.
 *
 * Normalisation form C (UAX #15) is decompose, sort each run of combining marks by class, compose.
 * utf8proc does all three, but sorts by exchanging neighbours, which a text of a million marks
 * turns into hours. So the text is cut where nothing can compose across, each piece decomposed
 * character by character, its runs sorted by a stable counting sort, and only the composition,
 * which is linear, left to utf8proc_normalize_utf32.
 *
 * Where to cut: a character below U+0300 is a starter and never the second half of a composition
 * (the lowest that is, is U+0300 itself), so a piece is one character and all that follow it from
 * U+0300 up. A piece of one character below U+0300 is its own form C. */
#include "engine/tokenizer/unicode.h"

#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <utf8proc.h>

enum { FIRST_COMBINING = 0x300, CLASSES = 256 };

static utf8proc_category_t category(uint32_t c)
{
    return utf8proc_category((utf8proc_int32_t)c);
}

bool unicode_is_space(uint32_t c)
{
    /* PropList.txt, White_Space; stable since Unicode 6.3. */
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

bool unicode_is_numeric(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool unicode_is_letter(uint32_t c)
{
    utf8proc_category_t k = category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool unicode_is_printable(uint32_t c)
{
    if (c == 0x20)
        return true;
    switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    default:
        return true;
    }
}

bool unicode_is_upper(uint32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_LU;
}

bool unicode_is_lower(uint32_t c)
{
    return category(c) == UTF8PROC_CATEGORY_LL;
}

uint32_t unicode_upper(uint32_t c)
{
    return (uint32_t)utf8proc_toupper((utf8proc_int32_t)c);
}

uint32_t unicode_lower(uint32_t c)
{
    return (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
}

uint32_t unicode_title(uint32_t c)
{
    return (uint32_t)utf8proc_totitle((utf8proc_int32_t)c);
}

static unsigned combining_class(utf8proc_int32_t c)
{
    return (unsigned)utf8proc_get_property(c)->combining_class;
}

/* Sorts c [n], all of class > 0, by class; equal classes keep their order. */
static void sort_marks(utf8proc_int32_t *c, size_t n, utf8proc_int32_t *spare)
{
    bool sorted = true;
    for (size_t i = 1; i < n && sorted; i++)
        sorted = combining_class(c[i - 1]) <= combining_class(c[i]);
    if (sorted)
        return;
    size_t first[CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++)
        first[combining_class(c[i]) + 1]++;
    for (int k = 0; k < CLASSES; k++)
        first[k + 1] += first[k];
    for (size_t i = 0; i < n; i++)
        spare[first[combining_class(c[i])]++] = c[i];
    for (size_t i = 0; i < n; i++)
        c[i] = spare[i];
}

size_t unicode_nfc_step(struct buf *out, const char *text, size_t n_bytes)
{
    size_t end = 0;
    uint32_t first = utf8_next(text, &end);
    size_t n_chars = 1, next = end;
    while (next < n_bytes && utf8_next(text, &next) >= FIRST_COMBINING) {
        end = next;
        n_chars++;
    }
    if (n_chars == 1 && first < FIRST_COMBINING) {
        buf_append(out, text, end);
        return end;
    }

    /* No canonical decomposition is longer: U+1F82 is the longest (UAX #15, 14.2, table 12). */
    enum { DECOMPOSITION_MAX = 4 };
    utf8proc_int32_t *c = xcalloc(n_chars * DECOMPOSITION_MAX, 2 * sizeof *c);
    utf8proc_int32_t *spare = c + n_chars * DECOMPOSITION_MAX;
    size_t n = 0, marks = 0; /* c [n]; the last `marks` of them are of class > 0 */
    for (size_t at = 0; at < end;) {
        utf8proc_int32_t code = (utf8proc_int32_t)utf8_next(text, &at);
        int boundary = 0;
        utf8proc_ssize_t k = utf8proc_decompose_char(
            code, c + n, DECOMPOSITION_MAX, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        BUG_IF(k < 1 || k > DECOMPOSITION_MAX);
        for (utf8proc_ssize_t i = 0; i < k; i++, n++) {
            if (combining_class(c[n]) != 0) {
                marks++;
            } else {
                sort_marks(c + n - marks, marks, spare);
                marks = 0;
            }
        }
    }
    sort_marks(c + n - marks, marks, spare);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(c, (utf8proc_ssize_t)n,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    BUG_IF(composed < 0);
    for (utf8proc_ssize_t i = 0; i < composed; i++)
        utf8_append(out, (uint32_t)c[i]);
    free(c);
    return end;
}
