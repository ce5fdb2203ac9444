/* tensor_dir: the files of a model or an adapter as one set of tensors; see safetensors.h.
 *
 * Which files: <stem>.safetensors when it exists, else the shards that
 * <stem>.safetensors.index.json names in weight_map. The index and the shards must agree exactly:
 * every tensor of the map is in the file it names, every tensor of a file is in the map, no tensor
 * is in two files. Shard names are plain names, so an index cannot point outside of its directory.
 *
 * A base model is mapped: 16 GB are not copied, and the page cache is shared by all processes. Its
 * files belong to the operator. An adapter comes from strangers and through the network: it is read
 * into memory, hashed there, and parsed from there, so that no later change of the file can make
 * what runs differ from what was hashed. What is to serve is read in two goes, headers first, so
 * that its tensors come straight to where they are to lie (tensor_read.c). */
#include "engine/safetensors.h"

#include "engine/config_json.h"
#include "engine/tensor_read.h"
#include "node/base/err.h"
#include "node/base/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INDEX_MAX_BYTES = 64 << 20, PIECE_BYTES = 256 << 10 };

static bool name_is_plain(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 255 || name[0] == '.')
        return false;
    for (size_t i = 0; i < n; i++)
        if (name[i] == '/' || name[i] == '\\' || (unsigned char)name[i] < 0x21 || name[i] == 0x7f)
            return false;
    return n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
}

static int file_map(struct tensor_dir_file *f, int fd, size_t n, struct err *err)
{
    if (n == 0)
        return err_set(err, ERR_INVALID, "%s: is empty", f->name);
    void *p = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return err_set_errno(err, errno, "%s: cannot map %zu bytes", f->name, n);
    f->bytes = p;
    f->n_bytes = n;
    return 0;
}

/* Reads and hashes in turn, a piece that stays in a core's cache at once. The whole file was asked
 * for in front, so that the disk reads what comes next while a piece is hashed. */
static int file_load(struct tensor_dir_file *f, int fd, size_t n, struct err *err)
{
    struct sha256 hash;
    sha256_init(&hash);
    f->bytes = malloc(n > 0 ? n : 1);
    if (f->bytes == NULL)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for its %zu bytes", f->name, n);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* advice: it may be refused */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    while (f->n_bytes < n) {
        size_t want = n - f->n_bytes < PIECE_BYTES ? n - f->n_bytes : PIECE_BYTES;
        ssize_t got = read(fd, f->bytes + f->n_bytes, want);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "%s: cannot read", f->name);
        if (got == 0)
            return err_set(err, ERR_IO, "%s: became shorter while it was read", f->name);
        sha256_update(&hash, f->bytes + f->n_bytes, (size_t)got);
        f->n_bytes += (size_t)got;
    }
    f->digest = sha256_final(&hash);
    return 0;
}

/* The header, or what there is of it; keeps fd. The disk begins to bring the rest. */
static int file_begin(struct tensor_dir_file *f, int fd, size_t n, struct err *err)
{
    uint8_t first[8];
    f->fd = fd;
    f->n_bytes = n;
    f->n_header = n < sizeof first ? n : sizeof first;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL); /* advice: it may be refused */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
    if (tensor_read_bytes(fd, first, 0, f->n_header, err) != 0)
        return err_wrap(err, "%s", f->name);
    if (n >= sizeof first) { /* what exceeds these bounds is refused when it is parsed */
        uint64_t rest = safetensors_header_bytes(first);
        if (rest <= SAFETENSORS_HEADER_MAX_BYTES && rest <= n - sizeof first)
            f->n_header += (size_t)rest;
    }
    f->bytes = malloc(f->n_header > 0 ? f->n_header : 1);
    if (f->bytes == NULL)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory for its header of %zu bytes", f->name,
                       f->n_header);
    size_t n_first = f->n_header < sizeof first ? f->n_header : sizeof first;
    memcpy(f->bytes, first, n_first);
    if (tensor_read_bytes(fd, f->bytes + n_first, n_first, f->n_header - n_first, err) != 0)
        return err_wrap(err, "%s", f->name);
    return 0;
}

/* Opens one file; *budget shrinks by its size when it is read. */
static int file_open(struct tensor_dir_file *f, const char *dir, const char *name,
                     enum tensor_dir_how how, size_t *budget, struct err *err)
{
    f->name = xstrdup(name);
    f->fd = -1;
    char *path = xasprintf("%s/%s", dir, name);
    int rc = -1, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st; /* O_NONBLOCK: the open of a FIFO would wait */
    if (fd < 0) {
        err_set_errno(err, errno, "%s: cannot open", name);
    } else if (fstat(fd, &st) != 0) {
        err_set_errno(err, errno, "%s: cannot stat", name);
    } else if (!S_ISREG(st.st_mode)) {
        err_set(err, ERR_INVALID, "%s: is not a regular file", name);
    } else if (how == TENSOR_DIR_MAP) {
        rc = file_map(f, fd, (size_t)st.st_size, err);
    } else if ((size_t)st.st_size > *budget) {
        err_set(err, ERR_TOO_LARGE,
                "%s: has %zu bytes, %zu are allowed (twice engine.adapter_host_bytes)", name,
                (size_t)st.st_size, *budget);
    } else {
        *budget -= (size_t)st.st_size;
        rc = how == TENSOR_DIR_READ ? file_load(f, fd, (size_t)st.st_size, err)
                                    : file_begin(f, fd, (size_t)st.st_size, err);
    }
    if (fd >= 0 && f->fd < 0)
        close(fd);
    free(path);
    return rc;
}

static int tensor_by_name(const void *a, const void *b)
{
    return strcmp((*(const struct tensor *const *)a)->name,
                  (*(const struct tensor *const *)b)->name);
}

/* Opens the shards of weight_map; files [0] is the index already. */
static int open_shards(struct tensor_dir *d, const char *dir, const json_t *map, size_t *budget,
                       struct err *err)
{
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file)
    {
        if (!json_is_string(file) || !name_is_plain(json_string_value(file)) ||
            strlen(json_string_value(file)) != json_string_length(file))
            return err_set(err, ERR_INVALID, "%s: tensor %s: its file is not a plain name",
                           d->files[0].name, tensor);
        const char *name = json_string_value(file);
        size_t i = 1;
        while (i < d->n_files && strcmp(d->files[i].name, name) != 0)
            i++;
        if (i < d->n_files)
            continue;
        if (d->n_files == TENSOR_DIR_FILES_MAX)
            return err_set(err, ERR_TOO_LARGE, "%s: names more than %d files", d->files[0].name,
                           TENSOR_DIR_FILES_MAX);
        d->files = xrealloc_array(d->files, d->n_files + 1, sizeof *d->files);
        struct tensor_dir_file *f = &d->files[d->n_files++];
        *f = (struct tensor_dir_file){0};
        if (file_open(f, dir, name, d->how, budget, err) != 0)
            return -1;
    }
    if (d->n_files == 1)
        return err_set(err, ERR_INVALID, "%s: weight_map is empty", d->files[0].name);
    return 0;
}

static int check_against_map(const struct tensor_dir *d, const json_t *map, struct err *err)
{
    for (size_t i = 0; i < d->n_files; i++) {
        const struct tensor_dir_file *f = &d->files[i];
        for (size_t j = 0; j < f->parsed.n_tensors; j++) {
            const char *name = f->parsed.tensors[j].name;
            const char *says = json_string_value(json_object_get(map, name));
            if (says == NULL || strcmp(says, f->name) != 0)
                return err_set(err, ERR_INVALID, "%s: holds tensor %s, which the index gives to %s",
                               f->name, name, says != NULL ? says : "no file");
        }
    }
    if (d->n_tensors != json_object_size(map)) {
        const char *name;
        json_t *file;
        json_object_foreach((json_t *)(uintptr_t)map, name, file)
        {
            if (tensor_dir_find(d, name) == NULL)
                return err_set(err, ERR_INVALID, "%s: lacks tensor %s, which the index names",
                               json_string_value(file), name);
        }
    }
    return 0;
}

static int parse_all(struct tensor_dir *d, size_t first, struct err *err)
{
    size_t n = 0;
    for (size_t i = first; i < d->n_files; i++) {
        struct tensor_dir_file *f = &d->files[i];
        int rc = d->how == TENSOR_DIR_HEADERS
                     ? safetensors_parse_header(&f->parsed, f->bytes, f->n_header, f->n_bytes, err)
                     : safetensors_parse(&f->parsed, f->bytes, f->n_bytes, err);
        if (rc != 0)
            return err_wrap(err, "%s", f->name);
        n += f->parsed.n_tensors;
    }
    d->tensors = xcalloc(n, sizeof(struct tensor *));
    for (size_t i = first; i < d->n_files; i++)
        for (size_t j = 0; j < d->files[i].parsed.n_tensors; j++)
            d->tensors[d->n_tensors++] = &d->files[i].parsed.tensors[j];
    qsort(d->tensors, n, sizeof(struct tensor *), tensor_by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(d->tensors[i - 1]->name, d->tensors[i]->name) == 0)
            return err_set(err, ERR_INVALID, "tensor %s is in two files", d->tensors[i]->name);
    return 0;
}

int tensor_dir_open(struct tensor_dir *out, const char *dir, const char *stem,
                    enum tensor_dir_how how, size_t max_bytes, struct err *err)
{
    *out = (struct tensor_dir){.how = how};
    struct tensor_dir *d = out;
    size_t budget = max_bytes;
    json_t *index = NULL;
    int rc = -1;
    char *single = xasprintf("%s.safetensors", stem);
    char *index_name = xasprintf("%s.safetensors.index.json", stem);
    char *single_path = xasprintf("%s/%s", dir, single);
    char *index_path = xasprintf("%s/%s", dir, index_name);

    d->files = xcalloc(1, sizeof *d->files);
    d->n_files = 1;
    if (access(single_path, F_OK) == 0) {
        rc = file_open(&d->files[0], dir, single, how, &budget, err);
        if (rc == 0)
            rc = parse_all(d, 0, err);
    } else if (access(index_path, F_OK) == 0) {
        size_t index_budget = budget < INDEX_MAX_BYTES ? budget : INDEX_MAX_BYTES;
        if (file_open(&d->files[0], dir, index_name, TENSOR_DIR_READ, &index_budget, err) != 0 ||
            config_json_parse(&index, d->files[0].bytes, d->files[0].n_bytes, index_name, err) != 0)
            goto out;
        const json_t *map = json_object_get(index, "weight_map");
        if (!json_is_object(map)) {
            err_set(err, ERR_INVALID, "%s: has no weight_map", index_name);
            goto out;
        }
        if (open_shards(d, dir, map, &budget, err) != 0 || parse_all(d, 1, err) != 0 ||
            check_against_map(d, map, err) != 0)
            goto out;
        rc = 0;
    } else {
        err_set(err, ERR_NOT_FOUND,
                "there is neither %s nor %s (pickled weights, .bin, are not read)", single,
                index_name);
    }
out:
    json_decref(index);
    free(single);
    free(index_name);
    free(single_path);
    free(index_path);
    if (rc != 0) {
        tensor_dir_close(d);
        return -1;
    }
    return 0;
}

void tensor_dir_close(struct tensor_dir *d)
{
    for (size_t i = 0; i < d->n_files; i++) {
        struct tensor_dir_file *f = &d->files[i];
        safetensors_release(&f->parsed);
        bool is_index = f->name != NULL && strstr(f->name, ".index.json") != NULL;
        if (d->how == TENSOR_DIR_MAP && !is_index) {
            if (f->bytes != NULL)
                munmap(f->bytes, f->n_bytes);
        } else {
            free(f->bytes);
        }
        if (f->name != NULL && d->how == TENSOR_DIR_HEADERS && f->fd >= 0)
            close(f->fd);
        free(f->name);
    }
    free(d->files);
    free(d->tensors);
    *d = (struct tensor_dir){0};
}

const struct tensor *tensor_dir_find(const struct tensor_dir *d, const char *name)
{
    size_t low = 0, high = d->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(d->tensors[middle]->name, name);
        if (order == 0)
            return d->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
