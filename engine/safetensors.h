/* safetensors: tensors in a file, and a directory of such files.
 *
 * The format (https://github.com/huggingface/safetensors, "Format"):
 *
 *   offset       size   what
 *   0            8      n, the header's length, little-endian u64
 *   8            n      JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [b, e]},
 *                       ..., "__metadata__": {"key": "text"}}, padded with spaces
 *   8 + n        rest   the data; b and e count from here
 *
 * Files are hostile: whatever the bytes are, parsing reads nothing outside of them, and what it
 * accepts is consistent: shape times dtype is the size, tensors lie end to end without overlap,
 * without hole and without rest, names are unique. */
#ifndef TRIBUTARY_ENGINE_SAFETENSORS_H
#define TRIBUTARY_ENGINE_SAFETENSORS_H

#include "node/base/buf.h"
#include "node/base/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum {
    SAFETENSORS_HEADER_MAX_BYTES = 100 * 1000 * 1000, /* the reference implementation's bound */
    SAFETENSORS_TENSORS_MAX = 1 << 20,
    SAFETENSORS_NAME_MAX_BYTES = 512,
    SAFETENSORS_DIMS_MAX = 8,
    TENSOR_DIR_FILES_MAX = 4096,
};

/* What a file may hold. Only the first three can be computed with. */
enum tensor_dtype {
    TENSOR_F32,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_F64,
    TENSOR_I64,
    TENSOR_U64,
    TENSOR_I32,
    TENSOR_U32,
    TENSOR_I16,
    TENSOR_U16,
    TENSOR_I8,
    TENSOR_U8,
    TENSOR_BOOL,
    TENSOR_F8_E4M3,
    TENSOR_F8_E5M2,
};

struct tensor {
    const char *name;    /* NUL-terminated, without control characters */
    const uint8_t *data; /* n_bytes (but see held); not aligned to anything. NULL: not read yet */
    size_t at, n_bytes;  /* in the file */
    int64_t shape[SAFETENSORS_DIMS_MAX];
    int n_dims; /* 0: a scalar */
    enum tensor_dtype dtype;
    enum tensor_dtype held; /* of TENSOR_DIR_HEADERS, once placed: what data's numbers are */
};

const char *tensor_dtype_name(enum tensor_dtype dtype); /* "BF16" */
size_t tensor_dtype_bytes(enum tensor_dtype dtype);

/* "[2, 3]" into out [n_out]; returns out. */
char *tensor_shape_text(const struct tensor *t, char *out, size_t n_out);

/* True when t has exactly these dimensions; d1 < 0: one dimension only. */
bool tensor_is(const struct tensor *t, int64_t d0, int64_t d1);

/* Element i as f32; data must be held in the file's dtype: F32, F16 or BF16. */
float tensor_f32(const struct tensor *t, size_t i);
size_t tensor_n_elements(const struct tensor *t);

/* ---- one file ---------------------------------------------------------------------------- */

struct safetensors {
    struct tensor *tensors; /* [n_tensors], ascending by name */
    size_t n_tensors;
    char *names; /* the memory of all names */
};

/* bytes [n] is the whole file, which must outlive *out. Pure: no I/O. The error says what is wrong
 * and with which tensor; *out then holds nothing. */
int safetensors_parse(struct safetensors *out, const uint8_t *bytes, size_t n, struct err *err);
/* The same of a file of n_file bytes that begins with bytes [n], n being n_file or at least
 * 8 + safetensors_header_bytes (when the file has that many): tensors have no data. */
int safetensors_parse_header(struct safetensors *out, const uint8_t *bytes, size_t n, size_t n_file,
                             struct err *err);
uint64_t safetensors_header_bytes(const uint8_t bytes[8]); /* as the file says */
void safetensors_release(struct safetensors *s);

/* NULL when there is none of that name. */
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);

/* ---- a directory: <stem>.safetensors, or shards with <stem>.safetensors.index.json ------- */

enum tensor_dir_how {
    TENSOR_DIR_MAP,     /* mmap: for the base model; files must not be truncated while open */
    TENSOR_DIR_READ,    /* read to memory and hash in one go: what is parsed is what was hashed */
    TENSOR_DIR_HEADERS, /* headers now, the tensors with tensor_dir_read, to where they belong */
};

struct tensor_dir_file {
    char *name;     /* without directory */
    uint8_t *bytes; /* [n_bytes], of TENSOR_DIR_HEADERS [n_header] */
    size_t n_bytes, n_header;
    int fd;                      /* of TENSOR_DIR_HEADERS, else -1 */
    struct sha256_digest digest; /* once read; of a mapped one when model.c has hashed it */
    struct safetensors parsed;   /* no tensors: the index */
};

struct tensor_dir {
    struct tensor_dir_file *files; /* [n_files]; when there is an index it is the first */
    size_t n_files;
    enum tensor_dir_how how;
    const struct tensor **tensors; /* [n_tensors], ascending by name, of all files */
    size_t n_tensors;
};

/* max_bytes, which is twice engine.adapter_host_bytes (lora.c) and called so in the error (the base
 * model is mapped), bounds the sum of the files when they are read. Fails naming the file, not dir:
 * whose files these are, and whether a reader of the error may know where they lie, knows the
 * caller. */
int tensor_dir_open(struct tensor_dir *out, const char *dir, const char *stem,
                    enum tensor_dir_how how, size_t max_bytes, struct err *err);
void tensor_dir_close(struct tensor_dir *d); /* quiet when nothing is open */

/* Of TENSOR_DIR_HEADERS: t, one of d's, will be read to data [its elements, of dtype held]: `held`
 * is its own dtype, F32 or BF16 (tensor_numbers.h). */
void tensor_dir_place(struct tensor_dir *d, const struct tensor *t, uint8_t *data,
                      enum tensor_dtype held);
/* Reads all tensors, each of which was placed, and hashes the files: what counts are the headers as
 * they were parsed and the data as it lies in its places (held as another dtype: as what lies there
 * was made from), whatever becomes of the files meanwhile.
 * All must be F32, F16 or BF16; numbers that are not finite, or of F32 not as a bf16 (from 3.396e38
 * on), are refused. Uses a thread of its own for a moment; when it returns, failed or not, nobody
 * writes to the places any more. */
int tensor_dir_read(struct tensor_dir *d, struct err *err);

const struct tensor *tensor_dir_find(const struct tensor_dir *d, const char *name);

#endif
