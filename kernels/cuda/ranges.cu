/* ranges.cu: mem_reserve to mem_release of ops.h by the driver's virtual memory management.
 *
 * A range is reserved addresses. Each of its granules (2 MiB) is mapped to an allocation of its
 * own, named by a handle, or to nothing. What is unbacked is unmapped, and its handle goes on a
 * stack; backing takes handles from there before it asks the driver for more. So memory that moves
 * is neither freed nor made, and what one range lost another gets.
 *
 *     range a  |h3|h7|h1|  |  |         spare  |h5|h2|
 *     range b  |h4|  |h6|  |  |  |
 *
 * The driver's functions come through the runtime (cudaGetDriverEntryPointByVersion): the program
 * links no libcuda. Their codes are the runtime's by number.
 * Source: CUDA C++ Programming Guide, Virtual Memory Management. */
#include "kernels/cuda/cuda.cuh"

#include <cudaTypedefs.h>

#include <cstdlib>
#include <cstring>

typedef CUmemGenericAllocationHandle handle;

struct range {
    struct range *next;
    uintptr_t begin;
    size_t n_granules;
    handle *handles; /* [n_granules] */
    bool *backed;    /* [n_granules] */
};

struct ranges {
    struct range *first;
    size_t granule;
    handle *spare; /* [n_spare] of memory for every granule of every range */
    size_t n_spare, max_spare;
    CUmemAllocationProp prop;
    PFN_cuMemGetAllocationGranularity_v10020 get_granularity;
    PFN_cuMemAddressReserve_v10020 address_reserve;
    PFN_cuMemAddressFree_v10020 address_free;
    PFN_cuMemCreate_v10020 create;
    PFN_cuMemRelease_v10020 release;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 set_access;
};

/* Host memory, or the end of the program, as xcalloc of node/base/buf.h. */
template <typename T> static T *zeroed(size_t n)
{
    T *p = static_cast<T *>(calloc(n > 0 ? n : 1, sizeof(T)));
    BUG_IF(p == nullptr);
    return p;
}

static void note(struct backend *be, CUresult rc, const char *what)
{
    cuda_note(be, static_cast<cudaError_t>(rc), what);
}

int cuda_ranges_open(struct backend *be, struct err *err)
{
    struct ranges *r = zeroed<struct ranges>(1);
    const struct {
        const char *name;
        void *at; /* where the function's address goes */
    } functions[] = {{"cuMemGetAllocationGranularity", &r->get_granularity},
                     {"cuMemAddressReserve", &r->address_reserve},
                     {"cuMemAddressFree", &r->address_free},
                     {"cuMemCreate", &r->create},
                     {"cuMemRelease", &r->release},
                     {"cuMemMap", &r->map},
                     {"cuMemUnmap", &r->unmap},
                     {"cuMemSetAccess", &r->set_access}};
    be->ranges = r;
    for (const auto &f : functions) {
        cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
        void *function = nullptr;
        cudaError_t rc = cudaGetDriverEntryPointByVersion(f.name, &function, 12000,
                                                          cudaEnableDefault, &found);
        if (rc != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr)
            return err_set(err, ERR_UNSUPPORTED, "cuda: the driver has no %s", f.name);
        memcpy(f.at, &function, sizeof function);
    }
    r->prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    r->prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    r->prop.location.id = be->options.device;
    CUresult rc = r->get_granularity(&r->granule, &r->prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (rc != CUDA_SUCCESS || r->granule == 0)
        return err_set(err, ERR_UNSUPPORTED, "cuda: no granularity of memory: %s",
                       cudaGetErrorString(static_cast<cudaError_t>(rc)));
    return 0;
}

void cuda_ranges_close(struct backend *be)
{
    struct ranges *r = be->ranges;
    if (r == nullptr)
        return;
    while (r->first != nullptr)
        cuda_mem_release(be, devptr{r->first->begin});
    while (r->n_spare > 0)
        r->release(r->spare[--r->n_spare]);
    free(r->spare);
    free(r);
    be->ranges = nullptr;
}

size_t cuda_ranges_granule(const struct backend *be)
{
    return be->ranges->granule;
}

int cuda_mem_reserve(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    struct ranges *r = be->ranges;
    CUdeviceptr begin = 0;
    BUG_IF(n_bytes == 0 || n_bytes % r->granule != 0);
    CUresult rc = r->address_reserve(&begin, n_bytes, 0, 0, 0);
    if (rc != CUDA_SUCCESS)
        return err_set(err, ERR_NO_MEMORY, "cuda: no addresses for %zu bytes: %s", n_bytes,
                       cudaGetErrorString(static_cast<cudaError_t>(rc)));
    struct range *a = zeroed<struct range>(1);
    a->next = r->first;
    a->begin = begin;
    a->n_granules = n_bytes / r->granule;
    a->handles = zeroed<handle>(a->n_granules);
    a->backed = zeroed<bool>(a->n_granules);
    r->first = a;
    r->max_spare += a->n_granules; /* so that no later call allocates */
    r->spare = static_cast<handle *>(realloc(r->spare, r->max_spare * sizeof *r->spare));
    BUG_IF(r->spare == nullptr);
    out->addr = begin;
    return 0;
}

/* The range that [p, p + n_bytes) lies in, whole granules; *index is its first granule there. */
static struct range *range_of(const struct ranges *r, struct devptr p, size_t n_bytes,
                              size_t *index)
{
    struct range *a = r->first;
    while (a != nullptr && (p.addr < a->begin || p.addr - a->begin >= a->n_granules * r->granule))
        a = a->next;
    BUG_IF(a == nullptr || n_bytes == 0 || n_bytes % r->granule != 0 ||
           (p.addr - a->begin) % r->granule != 0);
    *index = (p.addr - a->begin) / r->granule;
    BUG_IF(n_bytes / r->granule > a->n_granules - *index);
    return a;
}

static void unmap_granule(struct backend *be, struct range *a, size_t i)
{
    struct ranges *r = be->ranges;
    note(be, r->unmap(a->begin + i * r->granule, r->granule), "cuMemUnmap");
    r->spare[r->n_spare++] = a->handles[i];
    a->backed[i] = false;
}

/* A spare handle, or a new one. */
static CUresult take_handle(struct ranges *r, handle *out)
{
    if (r->n_spare == 0)
        return r->create(out, r->granule, &r->prop, 0);
    *out = r->spare[--r->n_spare];
    return CUDA_SUCCESS;
}

int cuda_mem_back(struct backend *be, struct devptr p, size_t n_bytes, struct err *err)
{
    struct ranges *r = be->ranges;
    size_t first, spare_before = r->n_spare;
    struct range *a = range_of(r, p, n_bytes, &first);
    size_t i = first, end = first + n_bytes / r->granule;
    CUresult rc = CUDA_SUCCESS;
    const char *what = "cuMemCreate";
    for (; i < end && rc == CUDA_SUCCESS; i++) {
        BUG_IF(a->backed[i]);
        rc = take_handle(r, &a->handles[i]);
        if (rc != CUDA_SUCCESS)
            break;
        what = "cuMemMap";
        rc = r->map(a->begin + i * r->granule, r->granule, 0, a->handles[i], 0);
        if (rc != CUDA_SUCCESS) {
            r->spare[r->n_spare++] = a->handles[i];
            break;
        }
        a->backed[i] = true;
        what = "cuMemCreate";
    }
    if (rc == CUDA_SUCCESS) {
        CUmemAccessDesc access = {};
        access.location = r->prop.location;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        what = "cuMemSetAccess";
        rc = r->set_access(p.addr, n_bytes, &access, 1);
    }
    if (rc == CUDA_SUCCESS)
        return 0;
    while (i-- > first)
        unmap_granule(be, a, i);
    while (r->n_spare > spare_before) /* those that were made */
        note(be, r->release(r->spare[--r->n_spare]), "cuMemRelease");
    if (rc != CUDA_ERROR_OUT_OF_MEMORY) {
        note(be, rc, what); /* the device's fault: sync tells it, as of every call */
        return 0;
    }
    return err_set(err, ERR_NO_MEMORY, "cuda: no memory for %zu bytes: %s", n_bytes, what);
}

void cuda_mem_unback(struct backend *be, struct devptr p, size_t n_bytes)
{
    size_t i;
    struct range *a = range_of(be->ranges, p, n_bytes, &i);
    for (size_t end = i + n_bytes / be->ranges->granule; i < end; i++) {
        BUG_IF(!a->backed[i]);
        unmap_granule(be, a, i);
    }
}

void cuda_mem_release(struct backend *be, struct devptr p)
{
    struct ranges *r = be->ranges;
    struct range **link = &r->first;
    if (p.addr == 0)
        return;
    while (*link != nullptr && (*link)->begin != p.addr)
        link = &(*link)->next;
    struct range *a = *link;
    BUG_IF(a == nullptr);
    *link = a->next;
    for (size_t i = 0; i < a->n_granules; i++)
        if (a->backed[i])
            unmap_granule(be, a, i);
    note(be, r->address_free(a->begin, a->n_granules * r->granule), "cuMemAddressFree");
    free(a->handles);
    free(a->backed);
    free(a);
}
