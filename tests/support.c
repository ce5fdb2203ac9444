/* support: see support.h. */
#include "tests/support.h"

#include "node/base/err.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

void fixture_read(const char *path, struct buf *out)
{
    /* gzread passes plain files through unchanged. */
    gzFile f = gzopen(path, "rb");
    if (f == NULL)
        fail_msg("cannot open fixture %s (tests run from the repository's root)", path);
    uint8_t chunk[65536];
    int n;
    while ((n = gzread(f, chunk, sizeof chunk)) > 0)
        buf_append(out, chunk, (size_t)n);
    if (n < 0)
        fail_msg("fixture %s: cannot inflate", path);
    gzclose(f);
}

json_t *fixture_json(const char *path)
{
    struct buf b = BUF_INIT;
    fixture_read(path, &b);
    json_error_t e;
    json_t *j = json_loadb((const char *)b.data, b.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    buf_release(&b);
    if (j == NULL)
        fail_msg("fixture %s: %s at line %d", path, e.text, e.line);
    return j;
}

size_t fixture_jsonl(const char *path, void (*row)(json_t *line, void *context), void *context)
{
    struct buf b = BUF_INIT;
    fixture_read(path, &b);
    size_t n = 0, at = 0;
    while (at < b.len) {
        const uint8_t *end = memchr(b.data + at, '\n', b.len - at);
        size_t len = end == NULL ? b.len - at : (size_t)(end - (b.data + at));
        if (len > 0) {
            json_error_t e;
            json_t *j = json_loadb((const char *)b.data + at, len, JSON_DECODE_ANY | JSON_ALLOW_NUL,
                                   &e);
            if (j == NULL)
                fail_msg("fixture %s line %zu: %s", path, n + 1, e.text);
            row(j, context);
            json_decref(j);
            n++;
        }
        at += len + 1;
    }
    buf_release(&b);
    return n;
}

char *temp_dir_create(void)
{
    const char *base = getenv("TMPDIR");
    char *path = xasprintf("%s/tributary-test.XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(path) == NULL)
        fail_msg("cannot create a temporary directory %s", path);
    return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void temp_dir_remove(char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}
