'use client';
import type { Agent, Session } from '@holdfast/contracts';
import { GitFork, MessagesSquare, Plus, Search } from 'lucide-react';
import Link from 'next/link';
import { useEffect, useEffectEvent, useRef, useState } from 'react';
import { useAddress } from '../lib/address.ts';
import { compact, dollars, number, seconds } from '../lib/format.ts';
import { usePlatformStatus } from '../lib/platform-status.ts';
import { Paged, usePages, useWholeList } from './paged.tsx';
import { StartSession } from './start-session.tsx';
import { StatusBadge } from './status-badge.tsx';
import { Button, cn, Empty, Id, Input, PageHeader, Panel, rowLink, Segmented, Select, Time } from './ui.tsx';

type View = 'all' | 'needs-you' | 'running' | 'idle' | 'archived';
const VIEWS: Readonly<Record<View, { readonly text: string; readonly query: string; readonly none: string }>> = {
  all: { text: 'All', query: '', none: 'No sessions yet' },
  'needs-you': { text: 'Needs you', query: '&x_needs_action=true', none: 'No session waits for you' },
  running: { text: 'Running', query: '&statuses[]=running&statuses[]=rescheduling', none: 'No session is running' },
  idle: { text: 'Idle', query: '&statuses[]=idle', none: 'No session is idle' },
  archived: { text: 'Archived', query: '&statuses[]=terminated', none: 'No session was archived' },
};
const SEARCH_DELAY_MS = 250;
const columns = 'lg:grid-cols-[7.5rem_minmax(0,1fr)_10rem_7rem_6rem_7rem]';

function useFilter() {
  const { params, set } = useAddress();
  const given = params.get('view') ?? 'all';
  return {
    view: (given in VIEWS ? given : 'all') as View,
    agentId: params.get('agent') ?? '',
    text: params.get('q') ?? '',
    set,
  };
}

export function SessionsPage() {
  const { view, agentId, text, set } = useFilter();
  const [starting, setStarting] = useState(false);
  const status = usePlatformStatus();
  const query = [
    VIEWS[view].query,
    agentId === '' ? '' : `&agent_id=${encodeURIComponent(agentId)}`,
    text === '' ? '' : `&x_text=${encodeURIComponent(text)}`,
  ].join('');
  const list = usePages<Session>(['sessions', query], `/v1/sessions?limit=50${query}`, text === '' ? 2_000 : 10_000);
  const isNarrowed = agentId !== '' || text !== '';
  const counts = status.data?.sessions;
  const start = (
    <Button look="primary" onClick={() => setStarting(true)}>
      <Plus className="size-4" aria-hidden /> New session
    </Button>
  );
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Sessions" about="Each is a log of events: whatever process dies, the session goes on.">
        {start}
      </PageHeader>
      <div className="mb-3 flex flex-wrap items-center gap-2">
        <Segmented
          label="Show"
          value={view}
          onChange={(value) => set({ view: value }, 'pushState')}
          options={[
            { value: 'all', text: VIEWS.all.text },
            {
              value: 'needs-you',
              text: VIEWS['needs-you'].text,
              count: status.data?.sessions_needing_action,
              isUrgent: true,
            },
            {
              value: 'running',
              text: VIEWS.running.text,
              count: counts === undefined ? undefined : (counts['running'] ?? 0) + (counts['rescheduling'] ?? 0),
            },
            { value: 'idle', text: VIEWS.idle.text },
            { value: 'archived', text: VIEWS.archived.text },
          ]}
        />
        <div className="flex min-w-full flex-1 gap-2 sm:min-w-80 lg:justify-end">
          <AgentFilter value={agentId} onChange={(value) => set({ agent: value }, 'pushState')} />
          <SearchBox value={text} onChange={(value) => set({ q: value }, 'replaceState')} />
        </div>
      </div>
      <Panel className="overflow-hidden">
        <Paged
          list={list}
          empty={
            <Empty icon={<MessagesSquare />} title={isNarrowed ? 'No session matches this filter' : VIEWS[view].none}>
              {isNarrowed ? (
                <Button onClick={() => set({ agent: '', q: '', view: 'all' }, 'pushState')}>Show all sessions</Button>
              ) : view === 'all' ? (
                <>
                  <p>Start one with an agent and a first message, here or over the API.</p>
                  {start}
                </>
              ) : null}
            </Empty>
          }
        >
          <div
            aria-hidden
            className={cn('hidden gap-x-4 border-b px-4 py-2 text-xs font-medium text-soft lg:grid', columns)}
          >
            <span>Status</span>
            <span>Session</span>
            <span>Agent</span>
            <span className="text-right">Usage</span>
            <span className="text-right">Active</span>
            <span className="text-right">Updated</span>
          </div>
          <ul className="divide-y">
            {list.items.map((session) => (
              <SessionRow key={session.id} session={session} />
            ))}
          </ul>
        </Paged>
      </Panel>
      <StartSession open={starting} onClose={() => setStarting(false)} {...(agentId === '' ? {} : { agentId })} />
    </div>
  );
}

function SessionRow({ session }: { session: Session }) {
  const { usage } = session;
  const tokens = usage.input_tokens + usage.output_tokens;
  const waits = session.x_waits_for === 'client';
  return (
    <li
      className={cn(
        'relative grid grid-cols-[minmax(0,1fr)_auto] items-center gap-x-4 gap-y-1 px-4 py-2.5 hover:bg-raised/60',
        columns,
        waits && 'shadow-[inset_3px_0_var(--color-warn)]',
      )}
    >
      <span className="order-2 justify-self-end lg:order-none lg:justify-self-start">
        <StatusBadge status={session.status} stopReason={session.x_stop_reason} waitsFor={session.x_waits_for} />
      </span>
      <span className="min-w-0">
        {/* The whole row is the link's; what else can be pressed lies above it. */}
        <Link href={`/sessions/${session.id}`} className={cn('block truncate text-sm font-medium', rowLink)}>
          {session.title ?? 'Untitled session'}
        </Link>
        <span className="hidden items-center text-xs text-soft lg:flex">
          <Id id={session.id} className="relative" />
          {session.forked_from === null ? null : (
            <span className="ml-2 flex items-center gap-1" title={`Forked from ${session.forked_from.session_id}`}>
              <GitFork className="size-3" aria-hidden /> fork
            </span>
          )}
        </span>
        <span className="block truncate text-xs text-soft lg:hidden">
          {session.agent.name} · {compact(tokens)} tokens · <Time at={session.updated_at} />
        </span>
      </span>
      <span className="hidden truncate text-sm text-soft lg:block">{session.agent.name}</span>
      <span
        className="hidden text-right text-sm text-soft tabular-nums lg:block"
        title={`${number(usage.input_tokens)} tokens in, ${number(usage.output_tokens)} out`}
      >
        {compact(tokens)} tok
        {usage.x_cost_usd === undefined ? null : <span className="block text-xs">{dollars(usage.x_cost_usd)}</span>}
      </span>
      <span className="hidden text-right text-sm text-soft tabular-nums lg:block">
        {seconds(session.stats.active_seconds)}
      </span>
      <span className="hidden text-right text-sm text-soft lg:block">
        <Time at={session.updated_at} />
      </span>
    </li>
  );
}

function AgentFilter(props: { value: string; onChange: (value: string) => void }) {
  const agents = useWholeList<Agent>(['agents', 'pick', 'all'], '/v1/agents?limit=100&include_archived=true');
  return (
    <Select
      aria-label="Agent"
      className="w-44 shrink-0"
      value={props.value}
      onChange={(event) => props.onChange(event.target.value)}
    >
      <option value="">Every agent</option>
      {agents.items.map((agent) => (
        <option key={agent.id} value={agent.id}>
          {agent.name}
        </option>
      ))}
    </Select>
  );
}

/** Searches as one writes; `/` goes to it from anywhere on the page. */
function SearchBox(props: { value: string; onChange: (value: string) => void }) {
  const box = useRef<HTMLInputElement>(null);
  const [text, setText] = useState(props.value);
  const apply = useEffectEvent((value: string) => {
    if (value !== props.value) props.onChange(value);
  });
  // Back and forward change the address; the box follows, unless somebody writes in it.
  useEffect(() => {
    if (document.activeElement !== box.current) setText(props.value);
  }, [props.value]);
  useEffect(() => {
    const timer = setTimeout(() => apply(text.trim()), SEARCH_DELAY_MS);
    return () => clearTimeout(timer);
  }, [text]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const inField = event.target instanceof Element && event.target.closest('input, textarea, select, [role=dialog]');
      if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey || inField) return;
      event.preventDefault();
      box.current?.focus();
    };
    document.addEventListener('keydown', onKey);
    return () => document.removeEventListener('keydown', onKey);
  }, []);
  return (
    <div className="relative min-w-0 flex-1 lg:max-w-64">
      <Search className="pointer-events-none absolute top-2.5 left-2.5 size-4 text-soft" aria-hidden />
      <Input
        ref={box}
        type="search"
        aria-label="Search by title or id"
        aria-keyshortcuts="/"
        placeholder="Title or id"
        className="pl-8.5"
        maxLength={200}
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => {
          if (event.key !== 'Escape') return;
          setText('');
          box.current?.blur();
        }}
      />
    </div>
  );
}
