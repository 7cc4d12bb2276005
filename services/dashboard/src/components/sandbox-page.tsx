'use client';
import type { Environment, Sandbox } from '@holdfast/contracts';
import { useQuery } from '@tanstack/react-query';
import { List, MessagesSquare } from 'lucide-react';
import Link from 'next/link';
import type { ReactNode } from 'react';
import { api } from '../lib/api.ts';
import { dateTime, number } from '../lib/format.ts';
import { LAUNCHES, placeOf, reasonTone, reasonWords, TONE_TEXT } from '../lib/sandboxes.ts';
import { SandboxBadge } from './status-badge.tsx';
import { LogEntries, useLog } from './timeline-page.tsx';
import { buttonClass, cn, Empty, Fact, Facts, Failure, Id, Loading, PageHeader, Panel, Time } from './ui.tsx';

const REFRESH_MS = 2_000;
const TIMES = ['not yet', 'once', 'twice'];

/** One sandbox: where it runs, or why it does not and what to do, and what happened to it. */
export function SandboxPage({ id }: { id: string }) {
  const query = useQuery({
    queryKey: ['sandbox', id],
    queryFn: ({ signal }) => api<Sandbox>(`/v1/x/sandboxes/${id}`, { signal }),
    refetchInterval: ({ state }) => (state.data?.status === 'destroyed' ? false : REFRESH_MS),
  });
  if (query.isPending) return <Loading />;
  if (query.data === undefined)
    return (
      <Failure
        error={query.error}
        onRetry={() => void query.refetch()}
        back={{ href: '/sandboxes', text: 'All sandboxes' }}
      />
    );
  const sandbox = query.data;
  return (
    <div className="mx-auto w-full max-w-5xl p-4 md:p-6">
      <PageHeader
        title={
          <span className="flex items-center gap-2">
            Sandbox <SandboxBadge sandbox={sandbox} />
          </span>
        }
        about={<Id id={id} />}
      >
        <Link className={buttonClass('plain')} href={`/sessions/${sandbox.session_id}`}>
          <MessagesSquare className="size-4" aria-hidden /> Session
        </Link>
      </PageHeader>
      <Trouble sandbox={sandbox} />
      <Panel className="p-4">
        <AllFacts sandbox={sandbox} />
      </Panel>
      <h2 className="mt-6 mb-2 text-sm font-medium">Events</h2>
      <Panel className="overflow-hidden">
        <Log id={id} />
      </Panel>
    </div>
  );
}

const BACKGROUNDS = { soft: 'bg-raised', warn: 'bg-warn-soft', bad: 'bg-bad-soft' } as const;

function Trouble({ sandbox }: { sandbox: Sandbox }) {
  const { reason } = sandbox;
  if (reason === null) return null;
  const tone = reasonTone(sandbox);
  const words = reasonWords(reason);
  return (
    <div
      role={tone === 'bad' ? 'alert' : 'status'}
      className={cn(
        'mb-4 space-y-1 rounded-lg p-3 text-sm [overflow-wrap:anywhere]',
        BACKGROUNDS[tone],
        TONE_TEXT[tone],
      )}
    >
      <p className="font-medium first-letter:uppercase">{words}</p>
      {reason.message === words ? null : <p>{reason.message}</p>}
      {reason.hint === null ? null : (
        <p>
          <span className="font-medium">What to do:</span> {reason.hint}
        </p>
      )}
      <p className="text-xs">
        since <Time at={reason.since} />
      </p>
    </div>
  );
}

function AllFacts({ sandbox }: { sandbox: Sandbox }) {
  const environment = useQuery({
    queryKey: ['environment', sandbox.environment_id],
    queryFn: ({ signal }) => api<Environment>(`/v1/environments/${sandbox.environment_id}`, { signal }),
  });
  const at = (time: string): ReactNode => (
    <>
      {dateTime(time)}, <Time at={time} />
    </>
  );
  return (
    <Facts>
      <Fact name="Session">
        <Id id={sandbox.session_id} />
      </Fact>
      <Fact name="Environment">
        {environment.data?.name} <Id id={sandbox.environment_id} />
      </Fact>
      {sandbox.context_key === null ? null : <Fact name="Context">{sandbox.context_key}</Fact>}
      <Fact name="Provider">{sandbox.provider}</Fact>
      <Fact name="Isolation">{sandbox.isolation ?? 'not known before it was ready'}</Fact>
      <Fact name="Runs on">{placeOf(sandbox) ?? 'nothing now'}</Fact>
      {sandbox.pod === null ? null : (
        <Fact name="Pod">
          <span className="font-mono text-xs">{sandbox.pod}</span>
        </Fact>
      )}
      {sandbox.namespace === null ? null : (
        <Fact name="Namespace">
          <span className="font-mono text-xs">{sandbox.namespace}</span>
        </Fact>
      )}
      {sandbox.launch === null ? null : (
        <Fact name="Start">
          {sandbox.launch}, {LAUNCHES[sandbox.launch]}
        </Fact>
      )}
      <Fact name="Started">{TIMES[sandbox.incarnation] ?? `${number(sandbox.incarnation)} times`}</Fact>
      <Fact name="Created">{at(sandbox.created_at)}</Fact>
      {sandbox.ready_at === null ? null : <Fact name="Ready">{at(sandbox.ready_at)}</Fact>}
      <Fact name="Changed">{at(sandbox.updated_at)}</Fact>
    </Facts>
  );
}

function Log({ id }: { id: string }) {
  const { query, entries } = useLog(`/v1/x/sandboxes/${id}/timeline`);
  if (query.isError && entries.length === 0)
    return <Failure error={query.error} onRetry={() => void query.refetch()} />;
  return (
    <LogEntries
      query={query}
      shown={entries}
      startedAt={entries[0]?.recorded_at}
      empty={<Empty icon={<List />} title="Nothing happened yet" />}
    />
  );
}
