/* adapter_told: local adapters that the node was told of while it ran come back with its next
 * start.
 *
 *   DATA/adapters.told    {"add":name,"dir":path}      a line for each that was told, in order; the
 *                         {"remove":name}              last one about a name counts
 *
 * A line is on the disk before the answer says so, and before the store acts on it: one append and
 * one fsync, however many adapters there are. A torn last line is what a crash or a full disk
 * leaves of an order that nobody got an answer to; it doesn't count. The file is written anew,
 * without what no longer counts, at the start and when most of it doesn't.
 *
 * told_lock orders the lines as the store acts: it is held from before the line is written until
 * the change is made, and taken before s->lock. */
#include "node/adapter_store_internal.h"

#include "node/base/log.h"
#include "node/json_util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TOLD_MAX_BYTES = 256 << 20, DEAD_LINES_MAX = 1000 };

static char *told_path(const struct adapter_store *s)
{
    return xasprintf("%s/adapters.told", s->data_dir);
}

static void append_add(struct buf *b, const char *name, const char *dir)
{
    buf_append_str(b, "{\"add\":");
    json_append_cstr(b, name);
    buf_append_str(b, ",\"dir\":");
    json_append_cstr(b, dir);
    buf_append_str(b, "}\n");
}

/* What counts, as the whole file. With told_lock. */
static int rewrite(struct adapter_store *s, struct err *err)
{
    struct buf text = BUF_INIT;
    size_t n, n_told = 0;
    pthread_mutex_lock(&s->lock);
    struct item **items = items_in_order(s, &n);
    for (size_t i = 0; i < n; i++) {
        if (items[i]->told) {
            append_add(&text, items[i]->name, items[i]->dir);
            n_told++;
        }
    }
    free(items);
    pthread_mutex_unlock(&s->lock);
    char *path = told_path(s);
    int rc = file_write_atomic(path, text.data, text.len, 0600, err);
    if (rc == 0)
        s->n_told = s->n_told_lines = n_told;
    free(path);
    buf_release(&text);
    return rc;
}

static int append(struct adapter_store *s, const struct buf *line, struct err *err)
{
    char *path = told_path(s);
    struct stat st;
    int rc = -1, fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        rc = file_write_atomic(path, line->data, line->len, 0600, err);
    } else if (fd < 0 || fstat(fd, &st) != 0) {
        err_set_errno(err, errno, "%s", path);
    } else {
        ssize_t n = write(fd, line->data, line->len);
        if (n == (ssize_t)line->len && fsync(fd) == 0) {
            rc = 0;
        } else {
            err_set_errno(err, n >= 0 && n < (ssize_t)line->len ? ENOSPC : errno, "writing %s",
                          path);
            if (ftruncate(fd, st.st_size) != 0)
                log_error("adapters", "%s ends in half a line: %s", path, strerror(errno));
        }
    }
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

static int record(struct adapter_store *s, const struct buf *line, struct err *err)
{
    if (s->n_told_lines > 2 * s->n_told + DEAD_LINES_MAX && rewrite(s, err) != 0)
        return -1;
    if (append(s, line, err) != 0)
        return -1;
    s->n_told_lines++;
    return 0;
}

int told_add(struct adapter_store *s, const char *name, const char *dir, struct err *err)
{
    struct buf line = BUF_INIT;
    if (!utf8_is_text(dir)) /* the line is JSON, and would name another */
        return err_set(err, ERR_INVALID,
                       "adapter %s: %s can't be remembered: the path is not UTF-8", name, dir);
    append_add(&line, name, dir);
    int rc = record(s, &line, err);
    buf_release(&line);
    return rc;
}

int told_remove(struct adapter_store *s, const char *name, struct err *err)
{
    struct buf line = BUF_INIT;
    buf_append_str(&line, "{\"remove\":");
    json_append_cstr(&line, name);
    buf_append_str(&line, "}\n");
    int rc = record(s, &line, err);
    buf_release(&line);
    return rc;
}

/* ---- the next start ----------------------------------------------------------------------------
 */

/* Name to directory, as the lines say; ownership of the text of dirs is lines'. *n_lines: all there
 * are, a bad one twice, so that the file is written anew. */
static json_t *told_parse(char *text, const char *path, size_t *n_lines)
{
    json_t *dirs = json_object();
    size_t number = 0;
    for (char *line; (line = strsep(&text, "\n")) != NULL;) {
        struct err err = {0};
        number++;
        if (line[0] == '\0')
            continue;
        json_t *o = json_parse(line, strlen(line), &err);
        const char *add = json_string_value(json_object_get(o, "add"));
        const char *dir = json_string_value(json_object_get(o, "dir"));
        const char *gone = json_string_value(json_object_get(o, "remove"));
        ++*n_lines;
        if (add != NULL && dir != NULL && dir[0] == '/') {
            json_object_del(dirs, add); /* the last place is its place in the order */
            json_object_set_new(dirs, add, json_string(dir));
        } else if (gone != NULL) {
            json_object_del(dirs, gone);
        } else {
            ++*n_lines;
            log_warn("adapters", "%s, line %zu: not what was told of an adapter, left out", path,
                     number);
        }
        json_decref(o);
    }
    return dirs;
}

int adapter_store_recall(struct adapter_store *s, size_t *n, struct err *err)
{
    char *path = told_path(s);
    struct buf text = BUF_INIT;
    struct err why = {0};
    *n = 0;
    int rc = file_read(path, TOLD_MAX_BYTES, &text, &why);
    if (rc != 0) {
        buf_release(&text);
        free(path);
        if (why.code == ERR_NOT_FOUND)
            return 0;
        *err = why;
        return err_wrap(err, "adapters that were told of earlier");
    }
    size_t n_lines = 0;
    json_t *dirs = told_parse((char *)(uintptr_t)buf_cstr(&text), path, &n_lines);
    pthread_mutex_lock(&s->told_lock);
    *n = local_recall(s, dirs);
    s->n_told = *n;
    s->n_told_lines = n_lines;
    if (n_lines != *n)
        rc = rewrite(s, err);
    pthread_mutex_unlock(&s->told_lock);
    json_decref(dirs);
    buf_release(&text);
    free(path);
    if (*n > 0)
        log_info("adapters", "%zu adapters that the node was told of earlier", *n);
    return rc;
}
