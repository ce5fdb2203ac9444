/* signed_fields: an EIP-712 message and its signature as a JSON object, from strangers.
 *
 * The object has each member of a table once, in any order, and no others. A table's row says where
 * in a struct the member goes, and of what kind it is:
 *
 *   FIELD_ADDRESS    "0x" and 40 digits; in mixed case they carry EIP-55's checksum
 *   FIELD_BYTES32    "0x" and 64 hexadecimal digits
 *   FIELD_INTEGER    from 0 to 2^53 - 1: from there on not every program's JSON is exact
 *   FIELD_AMOUNT     a decimal string below 2^128, in the smallest unit of the token
 *   FIELD_SIGNATURE  "0x" and 130 hexadecimal digits: r, s, v */
#ifndef TRIBUTARY_NODE_SIGNED_FIELDS_H
#define TRIBUTARY_NODE_SIGNED_FIELDS_H

#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;

enum field_kind { FIELD_ADDRESS, FIELD_BYTES32, FIELD_INTEGER, FIELD_AMOUNT, FIELD_SIGNATURE };

#define FIELD_INTEGER_MAX (((uint64_t)1 << 53) - 1)

struct signed_field {
    const char *name;
    enum field_kind kind;
    size_t offset; /* of a struct address, uint8_t [32], uint64_t, struct amount, struct signature
                    */
};

/* Fills the fields of the struct at out from text [n_text]. ERR_INVALID names the member; what
 * begins each sentence. */
int signed_fields_parse(void *out, const struct signed_field *fields, size_t n_fields,
                        const char *what, const char *text, size_t n_text, struct err *err);

/* Appends the object, its members in the table's order; integers must be at most
 * FIELD_INTEGER_MAX. */
void signed_fields_write(struct buf *out, const struct signed_field *fields, size_t n_fields,
                         const void *from);

#endif
