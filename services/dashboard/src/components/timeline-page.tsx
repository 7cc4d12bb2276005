'use client';
import { useInfiniteQuery } from '@tanstack/react-query';
import { ArrowLeft, ChevronRight } from 'lucide-react';
import Link from 'next/link';
import { useDeferredValue, useState } from 'react';
import { api } from '../lib/api.ts';
import { dateTime, number } from '../lib/format.ts';
import { Badge, Button, buttonClass, Empty, Failure, Input, Loading, PageHeader, Panel } from './ui.tsx';

interface LogEntry {
  readonly id: string;
  readonly version: number;
  readonly type: string;
  readonly recorded_at: string;
  readonly data: unknown;
  readonly metadata: unknown;
}
interface LogPage {
  readonly data: readonly LogEntry[];
  readonly next_after: number | null;
}

/** The log as it is stored, internal events too. */
export function TimelinePage({ id }: { id: string }) {
  const [filter, setFilter] = useState('');
  const wanted = useDeferredValue(filter.trim().toLowerCase());
  const query = useInfiniteQuery({
    queryKey: ['timeline', id],
    initialPageParam: 0,
    queryFn: ({ pageParam, signal }) =>
      api<LogPage>(`/v1/sessions/${id}/x/timeline?limit=500&after=${pageParam}`, { signal }),
    // The last page grows while the session lives: it is asked for again from its end.
    getNextPageParam: (last) => last.next_after,
  });
  const entries = query.data?.pages.flatMap((page) => page.data) ?? [];
  const shown = wanted === '' ? entries : entries.filter((entry) => entry.type.includes(wanted));
  return (
    <div className="mx-auto w-full max-w-5xl p-4 md:p-6">
      <PageHeader title="Event timeline" about={<code className="font-mono text-xs">{id}</code>}>
        <Link className={buttonClass('plain')} href={`/sessions/${id}`}>
          <ArrowLeft className="size-4" aria-hidden /> Chat
        </Link>
        <Button busy={query.isRefetching} onClick={() => void query.refetch()}>
          Refresh
        </Button>
      </PageHeader>
      <div className="mb-3 flex items-center gap-3">
        <Input
          type="search"
          aria-label="Filter by type"
          placeholder="Filter by type, for example tool"
          className="max-w-xs"
          value={filter}
          onChange={(event) => setFilter(event.target.value)}
        />
        <span className="text-sm text-soft">
          {number(shown.length)} of {number(entries.length)} events{query.hasNextPage ? ' so far' : ''}
        </span>
      </div>
      <Panel className="overflow-hidden">
        {query.isPending ? (
          <Loading />
        ) : query.isError ? (
          <Failure error={query.error} onRetry={() => void query.refetch()} />
        ) : shown.length === 0 ? (
          <Empty icon={<ChevronRight />} title="No event matches" />
        ) : (
          <ol className="divide-y">
            {shown.map((entry) => (
              <li key={entry.id} className="[content-visibility:auto] [contain-intrinsic-size:auto_2.5rem]">
                <details className="group">
                  <summary className="flex items-center gap-3 px-4 py-2 text-sm hover:bg-raised/60">
                    <ChevronRight
                      className="size-4 shrink-0 text-soft transition-transform group-open:rotate-90"
                      aria-hidden
                    />
                    <span className="w-10 shrink-0 text-right font-mono text-xs text-soft">{entry.version}</span>
                    <Badge tone={toneOf(entry.type)} className="font-mono">
                      {entry.type}
                    </Badge>
                    <span className="min-w-0 flex-1 truncate font-mono text-xs text-soft">{preview(entry.data)}</span>
                    <time className="hidden shrink-0 text-xs text-soft sm:block" dateTime={entry.recorded_at}>
                      {dateTime(entry.recorded_at)}
                    </time>
                  </summary>
                  <pre className="max-h-[32rem] overflow-auto bg-raised/60 px-4 py-3 font-mono text-xs whitespace-pre-wrap break-all">
                    {JSON.stringify(entry, null, 2)}
                  </pre>
                </details>
              </li>
            ))}
          </ol>
        )}
        {query.hasNextPage ? (
          <div className="flex justify-center border-t p-3">
            <Button size="small" busy={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
              Show more
            </Button>
          </div>
        ) : null}
      </Panel>
    </div>
  );
}

function preview(data: unknown): string {
  const text = JSON.stringify(data);
  return text === '{}' ? '' : text.slice(0, 200);
}
function toneOf(type: string): 'neutral' | 'good' | 'warn' | 'bad' {
  if (type === 'session.error') return 'bad';
  if (type.startsWith('user.') || type.startsWith('system.')) return 'good';
  if (type.includes('tool')) return 'warn';
  return 'neutral';
}
