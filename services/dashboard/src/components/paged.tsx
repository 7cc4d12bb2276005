'use client';
import { useInfiniteQuery } from '@tanstack/react-query';
import { type ReactNode, useMemo } from 'react';
import { api, type Page } from '../lib/api.ts';
import { Button, Failure, Loading } from './ui.tsx';

/** A list of the API, page after page; the first pages stay fresh when `refreshMs` says so. */
export function usePages<T>(key: readonly unknown[], path: string, refreshMs?: number) {
  const query = useInfiniteQuery({
    queryKey: key,
    initialPageParam: '',
    queryFn: ({ pageParam, signal }) =>
      api<Page<T>>(pageParam === '' ? path : `${path}${path.includes('?') ? '&' : '?'}page=${pageParam}`, { signal }),
    getNextPageParam: (last) => last.next_page,
    ...(refreshMs === undefined ? {} : { refetchInterval: refreshMs }),
  });
  const items = useMemo(() => query.data?.pages.flatMap((page) => page.data) ?? [], [query.data]);
  return { ...query, items };
}

/** Loading, error, empty, and more: the states of every list. */
export function Paged(props: { list: ReturnType<typeof usePages<unknown>>; empty: ReactNode; children: ReactNode }) {
  const { list } = props;
  if (list.isPending) return <Loading />;
  if (list.isError && list.items.length === 0)
    return <Failure error={list.error} onRetry={() => void list.refetch()} />;
  if (list.items.length === 0) return props.empty;
  return (
    <>
      {props.children}
      {list.hasNextPage ? (
        <div className="flex justify-center border-t p-3">
          <Button size="small" busy={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>
            Show more
          </Button>
        </div>
      ) : null}
    </>
  );
}
