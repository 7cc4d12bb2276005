'use client';
import { keepPreviousData, useInfiniteQuery } from '@tanstack/react-query';
import { type ReactNode, useEffect, useMemo } from 'react';
import { api, type Page } from '../lib/api.ts';
import { Button, Failure, Loading } from './ui.tsx';

/** A list of the API, page after page. With `refreshMs` each page that was loaded is asked for again so often. */
export function usePages<T>(key: readonly unknown[], path: string, refreshMs?: number) {
  const query = useInfiniteQuery({
    queryKey: key,
    initialPageParam: '',
    queryFn: ({ pageParam, signal }) =>
      api<Page<T>>(pageParam === '' ? path : `${path}${path.includes('?') ? '&' : '?'}page=${pageParam}`, { signal }),
    getNextPageParam: (last) => last.next_page,
    refetchInterval: ({ state }) => (refreshMs === undefined ? false : refreshMs * (state.data?.pages.length ?? 1)),
    placeholderData: keepPreviousData,
  });
  const items = useMemo(() => query.data?.pages.flatMap((page) => page.data) ?? [], [query.data]);
  return { ...query, items };
}

/** A whole list, for what chooses from it. */
export function useWholeList<T>(key: readonly unknown[], path: string) {
  const list = usePages<T>(key, path);
  const { hasNextPage, isFetching, fetchNextPage } = list;
  useEffect(() => {
    if (hasNextPage && !isFetching) void fetchNextPage();
  }, [hasNextPage, isFetching, fetchNextPage]);
  return list;
}

/** Loading, error, empty, and more: the states of every list. */
export function Paged(props: { list: ReturnType<typeof usePages<unknown>>; empty: ReactNode; children: ReactNode }) {
  const { list } = props;
  // What is still to be seen while another filter loads is another list's.
  if (list.isPending || (list.isPlaceholderData && list.items.length === 0)) return <Loading />;
  if (list.isError && list.items.length === 0)
    return <Failure error={list.error} onRetry={() => void list.refetch()} />;
  if (list.items.length === 0) return props.empty;
  return (
    <div className={list.isPlaceholderData ? 'opacity-60 transition-opacity' : ''} aria-busy={list.isPlaceholderData}>
      {props.children}
      {list.hasNextPage ? (
        <div className="flex justify-center border-t p-3">
          <Button size="small" busy={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>
            Show more
          </Button>
        </div>
      ) : null}
    </div>
  );
}
