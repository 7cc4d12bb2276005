'use client';
import { type TimelinePage as LogPage, SANDBOX_STATUSES, type Sandbox, type TimelineEntry } from '@holdfast/contracts';
import { type InfiniteData, useInfiniteQuery, useQuery, useQueryClient } from '@tanstack/react-query';
import { ArrowLeft, Box, ChevronRight, Download, GitFork, Search } from 'lucide-react';
import Link from 'next/link';
import { memo, type ReactNode, useDeferredValue, useEffect, useMemo, useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf, type Page } from '../lib/api.ts';
import { type ForkPlace, useFork } from '../lib/forks.ts';
import { dateTime, number, offset } from '../lib/format.ts';
import { mergeLogs, milestone, type TimelineRow } from '../lib/timeline.ts';
import {
  Badge,
  Button,
  buttonClass,
  CopyButton,
  Empty,
  Failure,
  Id,
  Input,
  Loading,
  PageHeader,
  Panel,
  Segmented,
  Verbatim,
} from './ui.tsx';

const PAGE_EVENTS = 500;
const LOOK_MS = 2_000;

/** The log as it is stored, internal events too, with its sandbox's; at its end it is looked at again and again. */
export function TimelinePage({ id }: { id: string }) {
  const [kind, setKind] = useState<'all' | 'milestones'>('all');
  const [filter, setFilter] = useState('');
  const wanted = useDeferredValue(filter.trim().toLowerCase());
  const path = `/v1/sessions/${id}/x/timeline`;
  const { query, entries: own } = useLog(path);
  const sandbox = useLog(useSandboxLog(id)).entries;
  const isAtEnd = query.data !== undefined && !query.hasNextPage;
  const entries = useMemo(() => mergeLogs(own, sandbox, isAtEnd), [own, sandbox, isAtEnd]);
  const shown = useMemo(
    () =>
      entries.filter(
        (entry) =>
          (kind === 'all' || milestone(entry) !== null) &&
          (wanted === '' || `${entry.type} ${JSON.stringify(entry)}`.toLowerCase().includes(wanted)),
      ),
    [entries, kind, wanted],
  );
  const download = useDownload(id, path, query);
  const { fork } = useFork(id);
  const startedAt = own[0]?.recorded_at;
  if (query.isError && entries.length === 0)
    return (
      <Failure
        error={query.error}
        onRetry={() => void query.refetch()}
        back={{ href: '/sessions', text: 'All sessions' }}
      />
    );
  return (
    <div className="mx-auto w-full max-w-5xl p-4 md:p-6">
      <PageHeader
        title="Event timeline"
        about={
          <span className="flex flex-wrap items-center gap-x-3">
            <Id id={id} />
            {startedAt === undefined ? null : `started ${dateTime(startedAt)}`}
          </span>
        }
      >
        <Link className={buttonClass('plain')} href={`/sessions/${id}`}>
          <ArrowLeft className="size-4" aria-hidden /> Chat
        </Link>
        <Button busy={download.busy} onClick={() => void download.start()}>
          {download.busy ? null : <Download className="size-4" aria-hidden />} Download
        </Button>
      </PageHeader>
      <div className="mb-3 flex flex-wrap items-center gap-x-3 gap-y-2">
        <div className="relative w-full sm:w-80">
          <Search className="pointer-events-none absolute top-2.5 left-2.5 size-4 text-soft" aria-hidden />
          <Input
            type="search"
            aria-label="Filter events"
            placeholder="Type or content, for example tool"
            className="pl-8.5"
            value={filter}
            onChange={(event) => setFilter(event.target.value)}
          />
        </div>
        <Segmented
          label="Show"
          value={kind}
          onChange={setKind}
          options={[
            { value: 'all', text: 'Everything' },
            { value: 'milestones', text: 'Files, sandbox, forks' },
          ]}
        />
        <span role="status" className="text-sm text-soft tabular-nums">
          {wanted === '' && kind === 'all' ? '' : `${number(shown.length)} of `}
          {number(entries.length)} events{query.hasNextPage ? ' so far' : ''}
        </span>
      </div>
      <Panel className="overflow-hidden">
        <LogEntries
          query={query}
          shown={shown}
          startedAt={startedAt}
          onFork={fork}
          empty={
            <Empty icon={<Search />} title="No event matches">
              {query.hasNextPage ? <p>There are more events than were loaded.</p> : null}
            </Empty>
          }
        />
      </Panel>
    </div>
  );
}

/** An entry of one log, or a row of two. */
type Shown = TimelineEntry & Partial<Pick<TimelineRow, 'of'>>;

/** Where the log of a session's sandbox is, once it has one. */
function useSandboxLog(id: string): string | null {
  const statuses = SANDBOX_STATUSES.map((status) => `&status[]=${status}`).join('');
  const { data } = useQuery({
    queryKey: ['sandbox-log-of', id],
    queryFn: ({ signal }) => api<Page<Sandbox>>(`/v1/x/sandboxes?session_id=${id}&limit=1${statuses}`, { signal }),
    refetchInterval: LOOK_MS,
  });
  const [sandbox] = data?.data ?? [];
  return sandbox === undefined ? null : `/v1/x/sandboxes/${sandbox.id}/timeline`;
}

/** Entries of a log, and the way to those that were not loaded. */
export function LogEntries(props: {
  query: ReturnType<typeof useLog>['query'];
  shown: readonly Shown[];
  startedAt: string | undefined;
  empty: ReactNode;
  /** Absent where the log is none of a session. */
  onFork?: ((place: ForkPlace) => void) | undefined;
}) {
  const { query, shown } = props;
  if (query.isPending) return <Loading />;
  return (
    <>
      {shown.length === 0 ? (
        props.empty
      ) : (
        <ol className="divide-y">
          {shown.map((entry) => (
            <Entry
              key={entry.id}
              entry={entry}
              startedAt={props.startedAt ?? entry.recorded_at}
              onFork={props.onFork}
            />
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
    </>
  );
}

const Entry = memo(function Entry(props: {
  entry: Shown;
  startedAt: string;
  onFork: ((place: ForkPlace) => void) | undefined;
}) {
  const { entry, startedAt } = props;
  const isOfSandbox = entry.of === 'sandbox';
  const onFork = isOfSandbox ? undefined : props.onFork;
  const words = milestone(entry);
  const [open, setOpen] = useState(false);
  const other = otherSession(entry);
  return (
    <li className="[contain-intrinsic-size:auto_2.25rem] [content-visibility:auto]">
      <details onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary className="flex items-center gap-x-3 gap-y-1 px-3 py-1.5 text-sm hover:bg-raised/60 max-sm:flex-wrap">
          <ChevronRight
            className={open ? 'size-4 shrink-0 rotate-90 text-soft' : 'size-4 shrink-0 text-soft'}
            aria-hidden
          />
          <span className="flex w-9 shrink-0 justify-end font-mono text-xs text-soft tabular-nums">
            {isOfSandbox ? <Box className="size-3.5" aria-label="of its sandbox" /> : entry.version}
          </span>
          <Badge tone={TONES[entry.type] ?? toneOf(entry.type)} className="shrink-0 font-mono">
            {entry.type}
          </Badge>
          {words === null ? (
            <span className="min-w-0 flex-1 truncate font-mono text-xs text-soft">{preview(entry.data)}</span>
          ) : (
            <span className="min-w-0 flex-1 text-xs max-sm:basis-full max-sm:pl-19 sm:truncate" title={words}>
              {words}
            </span>
          )}
          <time
            className="hidden shrink-0 font-mono text-xs text-soft tabular-nums sm:block"
            dateTime={entry.recorded_at}
            title={dateTime(entry.recorded_at)}
          >
            {offset(startedAt, entry.recorded_at)}
          </time>
        </summary>
        {open ? (
          <div className="border-t bg-raised/60">
            <div className="flex flex-wrap items-center justify-end gap-2 px-2 pt-2">
              {other === undefined ? null : (
                <Link className={buttonClass('plain', 'small')} href={`/sessions/${other.id}`}>
                  {other.text}
                </Link>
              )}
              {onFork === undefined ? null : (
                <Button size="small" onClick={() => onFork({ at_version: entry.version })}>
                  <GitFork className="size-3.5" aria-hidden /> Fork here
                </Button>
              )}
              <CopyButton text={JSON.stringify(entry, null, 2)} label="Copy the event" />
            </div>
            <Verbatim className="max-h-[32rem] overflow-auto px-4 pt-1 pb-3 font-mono text-xs break-all whitespace-pre-wrap">
              {JSON.stringify(entry, null, 2)}
            </Verbatim>
          </div>
        ) : null}
      </details>
    </li>
  );
});

/** The pages that were asked for; the last one of the log grows while the session lives, and is read on from its end. */
export function useLog(path: string | null) {
  const client = useQueryClient();
  const query = useInfiniteQuery({
    queryKey: ['timeline', path],
    initialPageParam: 0,
    enabled: path !== null,
    queryFn: ({ pageParam, signal }) => readLog(path ?? '', pageParam, signal),
    getNextPageParam: (last) => last.next_after,
    // The log is only ever added to: what was read stays as it is.
    staleTime: Number.POSITIVE_INFINITY,
  });
  const entries = useMemo(() => query.data?.pages.flatMap((page) => page.data) ?? [], [query.data]);
  const isAtEnd = query.data !== undefined && !query.hasNextPage;
  const version = entries.at(-1)?.version ?? 0;
  useEffect(() => {
    if (!isAtEnd || path === null) return undefined;
    const abort = new AbortController();
    const look = async () => {
      if (document.hidden) return;
      const more = await readLog(path, version, abort.signal).catch(() => null);
      if (more === null || more.data.length === 0) return;
      client.setQueryData<InfiniteData<LogPage, number>>(['timeline', path], (known) =>
        known === undefined || known.pages.at(-1)?.data.at(-1)?.version !== version
          ? known
          : { pages: [...known.pages, more], pageParams: [...known.pageParams, version] },
      );
    };
    const timer = setInterval(() => void look(), LOOK_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [client, path, isAtEnd, version]);
  return { query, entries };
}

function readLog(path: string, after: number, signal?: AbortSignal): Promise<LogPage> {
  return api<LogPage>(`${path}?limit=${PAGE_EVENTS}&after=${after}`, signal === undefined ? {} : { signal });
}

/** Saves the whole log as JSON lines, one event each. */
function useDownload(id: string, path: string, query: ReturnType<typeof useLog>['query']) {
  const [busy, setBusy] = useState(false);
  const start = async () => {
    setBusy(true);
    try {
      const pages = [...(query.data?.pages ?? [])];
      for (let after = pages.at(-1)?.next_after; after != null; after = pages.at(-1)?.next_after)
        pages.push(await readLog(path, after));
      const lines = pages.flatMap((page) => page.data.map((entry) => `${JSON.stringify(entry)}\n`));
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob(lines, { type: 'application/x-ndjson' }));
      link.download = `${id}.jsonl`;
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      toast.error(messageOf(error));
    } finally {
      setBusy(false);
    }
  };
  return { busy, start };
}

/** The session at the other end of a fork. */
function otherSession({ type, data }: TimelineEntry): { id: string; text: string } | undefined {
  const { fork_session_id: fork, from } = data as { fork_session_id?: string; from?: { session_id: string } };
  if (type === 'session.fork_created' && fork !== undefined) return { id: fork, text: 'Open the fork' };
  if (type === 'session.forked' && from !== undefined)
    return { id: from.session_id, text: 'Open what it was forked from' };
  return undefined;
}

function preview(data: unknown): string {
  const text = JSON.stringify(data);
  return text === '{}' ? '' : text.slice(0, 200);
}
const TONES: Readonly<Record<string, 'good' | 'warn' | 'bad'>> = {
  'session.error': 'bad',
  'session.forked': 'good',
  'session.fork_created': 'good',
  'session.checkpointed': 'good',
  'session.checkpoint_failed': 'bad',
  'session.sandbox_restored': 'warn',
  'session.outputs_kept': 'good',
  'sandbox.ready': 'good',
  'sandbox.waiting': 'warn',
  'sandbox.lost': 'warn',
  'sandbox.failed': 'bad',
  'sandbox.restored': 'good',
  'sandbox.checkpoint_failed': 'bad',
  'sandbox.link_refused': 'bad',
};
function toneOf(type: string): 'neutral' | 'good' | 'warn' {
  if (type.startsWith('user.') || type.startsWith('system.')) return 'good';
  if (type.includes('tool')) return 'warn';
  return 'neutral';
}
