/* async.cuh: copies into shared memory by the TMA unit, and the barriers that count them.
 *
 * A barrier is full when as many threads as it was made for have arrived and the bytes announced by
 * barrier_expect (which arrives, too) have come. Its phases have parities 0, 1, 0, ...; waiting for
 * parity 1 of a new barrier returns at once. */
#ifndef TRIBUTARY_KERNELS_CUDA_ASYNC_CUH
#define TRIBUTARY_KERNELS_CUDA_ASYNC_CUH

#include "kernels/cuda/cuda.cuh"

#include <cuda.h>

__device__ static inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static inline void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}

/* After the last barrier_init, by the thread that did it and before the others are let on. */
__device__ static inline void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ static inline void barrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ static inline void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

__device__ static inline void barrier_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{.reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;}" ::"r"(shared_address(b)),
                 "r"(parity)
                 : "memory");
}

/* By all threads that the barrier was made for; parity: of the times before, from 0 on. Between
 * tables of a kernel whose threads also wait for copies, racecheck follows this; it reported what
 * __syncthreads and named_sync of all threads separate there. */
__device__ static inline void barrier_meet(uint64_t *b, uint32_t &parity)
{
    barrier_arrive(b);
    barrier_wait(b, parity);
    parity ^= 1;
}

/* Has the phase ended? */
__device__ static inline bool barrier_test(uint64_t *b, uint32_t parity)
{
    uint32_t done;
    asm volatile("{.reg .pred done;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, done;}"
                 : "=r"(done)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
    return done != 0;
}

/* From global to shared memory, in bulk, counted on the barrier: a multiple of 16, and so are the
 * addresses. */
__device__ static inline void copy_bytes(void *to, const void *from, uint32_t bytes,
                                         uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* 16 bytes from global to shared memory, on their way; and an arrival of this thread when all that
 * it has asked for so is there. */
__device__ static inline void copy_16(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
}

__device__ static inline void copies_arrive(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b))
                 : "memory");
}

/* ---- clusters
 * ------------------------------------------------------------------------------------- */

__device__ static inline int cluster_rank()
{
    int r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

__device__ static inline int cluster_size()
{
    int n;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}

/* All threads of the cluster arrive; who waits knows that all have. Not a fence: release and
 * acquire at the cluster are fences of the whole device. */
__device__ static inline void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ static inline void cluster_wait()
{
    asm volatile("barrier.cluster.wait;" ::: "memory");
}

__device__ static inline void cluster_meet()
{
    cluster_arrive();
    cluster_wait();
}

/* Stores 16 bytes at the same place in block `rank` and counts them on that block's barrier: who
 * waits there sees them. */
__device__ static inline void store_remote(uint32_t address, int rank, uint64_t *barrier, float x,
                                           float y, float z, float w)
{
    asm volatile("{.reg .b32 r, b; mapa.shared::cluster.u32 r, %0, %1;\n"
                 "mapa.shared::cluster.u32 b, %2, %1;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[r], {%3, %4, %5, %6}, [b];}" ::"r"(address),
                 "r"(rank), "r"(shared_address(barrier)), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
}

/* On the barrier at the same place in block `rank` of the cluster. It says that something has been
 * read; nothing is made visible by it (release.cluster would be a fence of the whole device). */
__device__ static inline void barrier_arrive_remote(uint64_t *b, int rank)
{
    asm volatile("{.reg .b32 r; mapa.shared::cluster.u32 r, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [r];}" ::"r"(shared_address(b)),
                 "r"(rank)
                 : "memory");
}

/* Of n_threads threads, whole warps; 0 is __syncthreads. */
__device__ static inline void named_sync(int barrier, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(n_threads) : "memory");
}

/* Lets the others on who are, or will be, at named_sync. */
__device__ static inline void named_arrive(int barrier, int n_threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(n_threads) : "memory");
}

/* Makes this thread's writes to shared memory visible to copies that start later. */
__device__ static inline void fence_before_copies()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* A box of a matrix, from (column, row) on. */
__device__ static inline void copy_box(void *to, const CUtensorMap *map, int column, int row,
                                       uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
                 "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
                 : "memory");
}

/* The same to the same place in all blocks of the cluster that are in the mask, each told by its
 * own barrier. */
__device__ static inline void copy_box_to_all(void *to, const CUtensorMap *map, int column, int row,
                                              uint64_t *barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(mask)
                 : "memory");
}

__device__ static inline void prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* A bf16 matrix [n_rows, n_columns] in boxes of [box_rows, box_columns]. A box's row is 32, 64 or
 * 128 bytes, and its 16-byte chunks are swizzled over that width: see swizzle in
 * attention_decode.cu. encode: be->linear->encode_tiled. */
static inline CUtensorMap map_boxes(void *encode, const bf16 *x, uint64_t n_rows,
                                    uint64_t n_columns, int box_rows, int box_columns)
{
    typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    CUtensorMap map;
    cuuint64_t dims[2] = {n_columns, n_rows}, strides[1] = {n_columns * sizeof(bf16)};
    cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    CUtensorMapSwizzle swizzle = box_columns == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                     : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult rc = reinterpret_cast<encode_tiled *>(encode)(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16 *>(x), dims, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    BUG_IF(rc != CUDA_SUCCESS);
    return map;
}

#endif
