/* Manifests and their canonical JSON; RFC 8785's own examples where integers and strings suffice.
 */
#include "attribution/manifest.h"
#include "chain/keccak.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>

/* ---- canonical JSON ------------------------------------------------------------------------- */

static void canonical_json_sorts_escapes_and_refuses_real_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out; /* out NULL: refused, and error says: */
        const char *error;
    } rows[] = {
        {"{\"b\":1,\"a\":[true,false,null,{}]}", "{\"a\":[true,false,null,{}],\"b\":1}", NULL},
        /* RFC 8785, section 3.2.3: property names by UTF-16 code units */
        {"{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet "
         "With Dagesh\",\"1\":\"One\",\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":"
         "\"Control\",\"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}",
         "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\xc2\x80\":\"Control\",\"\xc3\xb6\":\"Latin "
         "Small Letter O With Diaeresis\",\"\xe2\x82\xac\":\"Euro Sign\",\"\xf0\x9f\x98\x80\":"
         "\"Emoji: Grinning Face\",\"\xef\xac\xb3\":\"Hebrew Letter Dalet With Dagesh\"}",
         NULL},
        /* section 3.2.2.2: the example's string */
        {"[\"\\u20ac$\\u000F\\u000aA'\\u0042\\u0022\\u005c\\\\\\\"\\/\"]",
         "[\"\xe2\x82\xac$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"]", NULL},
        {"[\"\\b\\t\\f\\u001f\\u007f\"]", "[\"\\b\\t\\f\\u001f\x7f\"]", NULL},
        {"[9007199254740991,-9007199254740991,0]", "[9007199254740991,-9007199254740991,0]", NULL},
        {"[9007199254740992]", NULL, "[0] is an integer beyond"},
        {"{\"royalty\":{\"promptPer1k\":1.5}}", NULL, "royalty.promptPer1k is a floating point"},
        {"{\"a\":[0,{\"b\":1e2}]}", NULL, "a[1].b is a floating point"},
        {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", NULL,
         "nested more than 32"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct buf out = BUF_INIT;
        struct err err = {0};
        json_t *value = json_loads(rows[i].in, 0, NULL);
        assert_non_null(value);
        int rc = canonical_json_write(value, &out, &err);
        if (rows[i].out) {
            assert_ok(rc, err);
            assert_string_equal(buf_cstr(&out), rows[i].out);
        } else if (rc == 0 || !strstr(err.message, rows[i].error)) {
            fail_msg("%s: %s", rows[i].in, rc == 0 ? "accepted" : err.message);
        }
        json_decref(value);
        buf_release(&out);
    }
}

/* ---- manifests ------------------------------------------------------------------------------ */

static const char *const modules[] = {"q_proj", "v_proj"};

static struct manifest_adapter sample(struct manifest_file files[2],
                                      struct manifest_split splits[2],
                                      struct manifest_datanet_share nets[2])
{
    memset(files, 0, 2 * sizeof(*files));
    memset(splits, 0, 2 * sizeof(*splits));
    memset(nets, 0, 2 * sizeof(*nets));
    files[0].path = "adapter_config.json";
    files[0].size_bytes = 700;
    files[1].path = "weights/adapter_model.safetensors";
    files[1].size_bytes = 123456789012345;
    files[1].sha256.bytes[0] = 1;
    splits[0].bps = 6000;
    splits[1].bps = 2500;
    memset(splits[0].payee.bytes, 0xaa, 20);
    memset(splits[1].payee.bytes, 0xbb, 20);
    nets[0].bps = 1000;
    nets[1].bps = 500;
    nets[0].id.bytes[0] = 1;
    nets[1].id.bytes[0] = 2;
    struct manifest_adapter m = {
        .name = "med",
        .version = 3,
        .has_parent = true,
        .parent = {{5}},
        .base_model_name = "demo-7m",
        .base_model = {{7}},
        .creator = {{0xc0}},
        .created_unix_s = 1763900000,
        .licence = "CC-BY-4.0 \xe2\x82\xac \"quoted\"",
        .chat_template = "{{ messages }}\n",
        .rank = 16,
        .n_target_modules = 2,
        .target_modules = (const char **)modules,
        .n_files = 2,
        .files = files,
        .royalty_prompt_per_1k = amount_of(1),
        .royalty_completion_per_1k = AMOUNT_MAX,
        .n_splits = 2,
        .splits = splits,
        .n_datanets = 2,
        .datanets = nets,
    };
    m.content = manifest_content_digest(files, 2);
    return m;
}

static void sample_text(struct buf *text)
{
    struct manifest_file files[2];
    struct manifest_split splits[2];
    struct manifest_datanet_share nets[2];
    struct manifest_adapter m = sample(files, splits, nets);
    struct err err = {0};
    assert_ok(manifest_adapter_write(&m, text, &err), err);
}

static void an_adapter_manifest_survives_the_round_trip(void **state)
{
    (void)state;
    struct buf text = BUF_INIT, again = BUF_INIT;
    struct arena arena = ARENA_INIT;
    struct manifest_adapter m;
    struct sha256_digest hash, want;
    struct err err = {0};
    sample_text(&text);
    assert_ok(manifest_adapter_parse(&m, &hash, &arena, text.data, text.len, &err), err);
    want = sha256(text.data, text.len);
    assert_memory_equal(hash.bytes, want.bytes, 32);
    assert_string_equal(m.name, "med");
    assert_int_equal(m.version, 3);
    assert_true(m.has_parent && m.parent.bytes[0] == 5);
    assert_string_equal(m.chat_template, "{{ messages }}\n");
    assert_int_equal(m.files[1].size_bytes, 123456789012345);
    assert_int_equal(amount_cmp(m.royalty_completion_per_1k, AMOUNT_MAX), 0);
    assert_int_equal(m.splits[1].bps, 2500);
    assert_int_equal(m.datanets[1].id.bytes[0], 2);
    assert_ok(manifest_adapter_write(&m, &again, &err), err);
    assert_string_equal(buf_cstr(&again), buf_cstr(&text));
    struct manifest fields;
    manifest_signed_fields(&fields, &m, hash);
    assert_int_equal(fields.version, 3);
    assert_memory_equal(fields.manifest_hash.bytes, hash.bytes, 32);
    assert_memory_equal(fields.parent.bytes, m.parent.bytes, 32);
    arena_release(&arena);
    buf_release(&text);
    buf_release(&again);
}

/* The sample's text with its first `from` replaced by `to`. */
static char *altered(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("the sample has no %s", from);
    return xasprintf("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

static void a_hostile_manifest_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *error;
    } rows[] = {
        {"{\"baseModel\"", "{ \"baseModel\"", "canonical form"},
        {"\"version\":3", "\"version\":3.0", "version is a floating point number"},
        {"\"version\":3", "\"version\":-3", "version is not 0 to 2^53 - 1"},
        {"\"version\":3", "\"version\":0", "version is not 1"},
        {"\"version\":3", "\"version\":9007199254740992", "version is not 0 to 2^53 - 1"},
        {"\"version\":3", "\"version\":99999999999999999999999", "not JSON"},
        {"\"version\":3", "\"version\":\"3\"", "version is not an integer"},
        {"\"name\":\"med\"", "\"name\":\"../med\"", "name is not"},
        {"\"name\":\"med\"", "\"name\":\"Med\"", "name is not"},
        {"\"name\":\"med\"", "\"name\":\"med\",\"nome\":1", "nome is not a key"},
        {"\"name\":\"med\"", "\"name\":\"med\",\"name\":\"law\"", "not JSON: duplicate"},
        {"\"name\":\"med\",", "", "name is missing"},
        {"\"schema\":\"tributary.adapter/1\"", "\"schema\":\"tributary.adapter/2\"", "schema is"},
        {"\"promptPer1k\":\"1\"", "\"promptPer1k\":1", "amounts are decimal strings"},
        {"\"promptPer1k\":\"1\"", "\"promptPer1k\":\"01\"", "decimal amount"},
        {"\"promptPer1k\":\"1\"", "\"promptPer1k\":\"-1\"", "decimal amount"},
        {"\"promptPer1k\":\"1\"", "\"promptPer1k\":\"340282366920938463463374607431768211456\"",
         "below 2^128"},
        {"\"bps\":6000", "\"bps\":6001", "sum to 10001 basis points"},
        {"\"bps\":6000", "\"bps\":0", "splits[0].bps is 0"},
        {"\"bps\":6000", "\"bps\":70000", "splits[0].bps is above 10000"},
        {"\"id\":\"0x02", "\"id\":\"0x01", "names the Datanet of datanets[0]"},
        {"\"payee\":\"0xaa", "\"payee\":\"0xAA", "is not an address"},
        {"\"payee\":\"0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
         "\"payee\":\"0x0000000000000000000000000000000000000000\"", "zero address"},
        {"\"path\":\"weights/adapter", "\"path\":\"../adapter", "plain relative path"},
        {"\"path\":\"weights/adapter", "\"path\":\"/etc/adapter", "plain relative path"},
        {"\"path\":\"weights/adapter", "\"path\":\"weights//adapter", "plain relative path"},
        {"\"path\":\"weights/adapter", "\"path\":\"adapter_a", "is not above"},
        {"\"size\":700", "\"size\":701", "contentDigest is not the digest of files"},
        {"\"size\":700", "\"size\":[700]", "files[0].size is not an integer"},
        {"\"parent\":\"05", "\"parent\":\"0x05", "is not a digest"},
        {"\"parent\":\"05", "\"parent\":\"00", "parent is all zero"},
        {"\"rank\":16", "\"rank\":0", "rank is not"},
        {"\"rank\":16", "\"rank\":4294967312", "rank is not"},
        {"\"targetModules\":[\"q_proj\",\"v_proj\"]", "\"targetModules\":[]", "targetModules"},
        {"\"targetModules\":[\"q_proj\",\"v_proj\"]", "\"targetModules\":[3]", "targetModules"},
        {"\"licence\":\"CC", "\"licence\":\"\\u0043C", "canonical form"},
        {"\"licence\":\"CC", "\"licence\":\"\xff", "not JSON"},
    };
    struct buf text = BUF_INIT;
    sample_text(&text);
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct arena arena = ARENA_INIT;
        struct manifest_adapter m;
        struct err err = {0};
        char *bad = altered(buf_cstr(&text), rows[i].from, rows[i].to);
        /* Exactly as many bytes as there are, so that reading beyond shows. */
        size_t n = strlen(bad);
        char *exact = xmalloc(n + 1);
        memcpy(exact, bad, n);
        char *tight = realloc(exact, n);
        assert_non_null(tight);
        int rc = manifest_adapter_parse(&m, NULL, &arena, tight, n, &err);
        if (rc == 0 || !strstr(err.message, rows[i].error))
            fail_msg("%s: expected \"%s\", got %s", rows[i].to, rows[i].error,
                     rc == 0 ? "acceptance" : err.message);
        free(tight);
        free(bad);
        arena_release(&arena);
    }
    for (size_t cut = 0; cut < text.len; cut += 7) {
        struct arena arena = ARENA_INIT;
        struct manifest_adapter m;
        assert_int_equal(manifest_adapter_parse(&m, NULL, &arena, text.data, cut, NULL), -1);
        arena_release(&arena);
    }
    buf_release(&text);
}

static void sizes_are_bounded(void **state)
{
    (void)state;
    struct manifest_file files[2];
    struct manifest_split splits[2], many[MANIFEST_SHARES_MAX + 1];
    struct manifest_datanet_share nets[2];
    struct buf text = BUF_INIT;
    struct err err = {0};
    struct arena arena = ARENA_INIT;
    struct manifest_adapter m = sample(files, splits, nets);
    for (size_t i = 0; i <= MANIFEST_SHARES_MAX; i++)
        many[i] = splits[0];
    m.splits = many;
    m.n_splits = MANIFEST_SHARES_MAX + 1;
    assert_int_equal(manifest_adapter_write(&m, &text, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    char *huge = xmalloc(MANIFEST_MAX_BYTES + 1);
    memset(huge, ' ', MANIFEST_MAX_BYTES + 1);
    assert_int_equal(manifest_adapter_parse(&m, NULL, &arena, huge, MANIFEST_MAX_BYTES + 1, &err),
                     -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    memset(huge, '[', MANIFEST_MAX_BYTES);
    assert_int_equal(manifest_adapter_parse(&m, NULL, &arena, huge, MANIFEST_MAX_BYTES, &err), -1);
    free(huge);
    arena_release(&arena);
    buf_release(&text);
}

static void a_datanet_manifest_survives_the_round_trip(void **state)
{
    (void)state;
    struct manifest_source source = {.url = "https://example.org/medquad.zip", .sha256 = {{9}}};
    struct manifest_datanet m = {
        .name = "medquad",
        .description = "Questions and answers",
        .licence = "CC-BY-4.0",
        .owner = {{1}},
        .payee = {{2}},
        .created_unix_s = 1763900000,
        .n_sources = 1,
        .sources = &source,
    };
    struct buf text = BUF_INIT;
    struct arena arena = ARENA_INIT;
    struct manifest_datanet again;
    struct sha256_digest hash;
    struct err err = {0};
    assert_ok(manifest_datanet_write(&m, &text, &err), err);
    assert_ok(manifest_datanet_parse(&again, &hash, &arena, text.data, text.len, &err), err);
    assert_string_equal(again.name, "medquad");
    assert_int_equal(again.payee.bytes[0], 2);
    assert_string_equal(again.sources[0].url, source.url);
    struct manifest_adapter adapter;
    assert_int_equal(manifest_adapter_parse(&adapter, NULL, &arena, text.data, text.len, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    arena_release(&arena);
    buf_release(&text);
}

static void ids_on_chain_are_abi_encoded_words(void **state)
{
    (void)state;
    struct address registry = {{0x11}}, creator = {{0x22}};
    struct model_id model = {{0x33}};
    struct sha256_digest hash = {{0x44}};
    uint8_t words[5 * 32] = {0};
    words[30] = 0x06; /* 1612 */
    words[31] = 0x4c;
    words[32 + 12] = 0x11;
    words[64 + 12] = 0x22;
    words[96] = 0x33;
    words[128] = 0x44;
    struct adapter_id id = manifest_adapter_id(1612, registry, creator, model, hash);
    assert_memory_equal(id.bytes, keccak256(words, 160).bytes, 32);
    words[96] = 0x44;
    struct datanet_id net = manifest_datanet_id(1612, registry, creator, hash);
    assert_memory_equal(net.bytes, keccak256(words, 128).bytes, 32);
}

static void the_content_digest_ignores_the_order_of_files(void **state)
{
    (void)state;
    struct manifest_file files[2];
    struct manifest_split splits[2];
    struct manifest_datanet_share nets[2];
    sample(files, splits, nets);
    struct content_digest a = manifest_content_digest(files, 2);
    struct manifest_file swapped[2] = {files[1], files[0]};
    struct content_digest b = manifest_content_digest(swapped, 2);
    assert_memory_equal(a.bytes, b.bytes, 32);
    swapped[0].size_bytes++;
    b = manifest_content_digest(swapped, 2);
    assert_memory_not_equal(a.bytes, b.bytes, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(canonical_json_sorts_escapes_and_refuses_real_numbers),
        cmocka_unit_test(an_adapter_manifest_survives_the_round_trip),
        cmocka_unit_test(a_hostile_manifest_is_refused_by_name),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(a_datanet_manifest_survives_the_round_trip),
        cmocka_unit_test(ids_on_chain_are_abi_encoded_words),
        cmocka_unit_test(the_content_digest_ignores_the_order_of_files),
    };
    return cmocka_run_group_tests_name("manifest", tests, NULL, NULL);
}
