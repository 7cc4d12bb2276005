'use client';
import type { Environment, Sandbox, SandboxPool } from '@holdfast/contracts';
import { Box } from 'lucide-react';
import Link from 'next/link';
import { useAddress } from '../lib/address.ts';
import { messageOf } from '../lib/api.ts';
import { number, shortId } from '../lib/format.ts';
import { usePlatformStatus } from '../lib/platform-status.ts';
import { LAUNCHES, placeOf, reasonTone, reasonWords, TONE_TEXT } from '../lib/sandboxes.ts';
import { Paged, usePages, useWholeList } from './paged.tsx';
import { SandboxBadge } from './status-badge.tsx';
import {
  Button,
  buttonClass,
  cn,
  Empty,
  FormError,
  PageHeader,
  Panel,
  rowLink,
  Segmented,
  Select,
  Time,
} from './ui.tsx';

const VIEWS = {
  all: { text: 'All', none: 'No sandboxes' },
  starting: { text: 'Starting', none: 'No sandbox is starting' },
  ready: { text: 'Ready', none: 'No sandbox is ready' },
  suspended: { text: 'Suspended', none: 'No sandbox is suspended' },
  failed: { text: 'Failed', none: 'No sandbox has failed' },
  destroyed: { text: 'Destroyed', none: 'No sandbox was destroyed' },
} as const;
type View = keyof typeof VIEWS;
const REFRESH_MS = 2_000;
const columns = 'lg:grid-cols-[6.5rem_minmax(0,1fr)_8rem_12rem_4.5rem_5.5rem_6rem]';

export function SandboxesPage() {
  const { params, set } = useAddress();
  const given = params.get('view') ?? 'all';
  const view = (given in VIEWS ? given : 'all') as View;
  const environmentId = params.get('environment') ?? '';
  const counts = usePlatformStatus(REFRESH_MS).data?.sandboxes;
  const environments = useWholeList<Environment>(
    ['environments', 'pick', 'all'],
    '/v1/environments?limit=100&include_archived=true',
  );
  const names = new Map(environments.items.map(({ id, name }) => [id, name]));
  const query = [
    view === 'all' ? '' : `&status[]=${view}`,
    environmentId === '' ? '' : `&environment_id=${encodeURIComponent(environmentId)}`,
  ].join('');
  const list = usePages<Sandbox>(['sandboxes', query], `/v1/x/sandboxes?limit=50${query}`, REFRESH_MS);
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Sandboxes" about="Where the tools of sessions run. One that is lost is replaced." />
      <Pools />
      <div className="mb-3 flex flex-wrap items-center justify-between gap-2">
        <Segmented
          label="Show"
          value={view}
          onChange={(value) => set({ view: value }, 'pushState')}
          options={(Object.keys(VIEWS) as View[]).map((value) => ({
            value,
            text: VIEWS[value].text,
            count: counts?.[value],
            isUrgent: value === 'failed',
          }))}
        />
        <Select
          aria-label="Environment"
          className="w-full sm:w-48"
          value={environmentId}
          onChange={(event) => set({ environment: event.target.value }, 'pushState')}
        >
          <option value="">Every environment</option>
          {environments.items.map(({ id, name, archived_at }) => (
            <option key={id} value={id}>
              {name}
              {archived_at === null ? '' : ' (archived)'}
            </option>
          ))}
        </Select>
      </div>
      <Panel className="overflow-hidden">
        <Paged
          list={list}
          empty={
            <Empty icon={<Box />} title={VIEWS[view].none}>
              {view !== 'all' || environmentId !== '' ? (
                <Button onClick={() => set({ view: 'all', environment: '' }, 'pushState')}>Show all sandboxes</Button>
              ) : (
                <>
                  <p>A session gets its sandbox with the first tool call, for example when its agent runs a command.</p>
                  <Link className={buttonClass('primary')} href="/sessions">
                    Go to the sessions
                  </Link>
                </>
              )}
            </Empty>
          }
        >
          <div
            aria-hidden
            className={cn('hidden gap-x-4 border-b px-4 py-2 text-xs font-medium text-soft lg:grid', columns)}
          >
            <span>State</span>
            <span>Sandbox and session</span>
            <span>Environment</span>
            <span>Runs on</span>
            <span>Start</span>
            <span className="text-right">Age</span>
            <span className="text-right">Changed</span>
          </div>
          <ul className="divide-y">
            {list.items.map((sandbox) => (
              <SandboxRow
                key={sandbox.id}
                sandbox={sandbox}
                environment={names.get(sandbox.environment_id) ?? shortId(sandbox.environment_id)}
              />
            ))}
          </ul>
        </Paged>
      </Panel>
    </div>
  );
}

function SandboxRow({ sandbox, environment }: { sandbox: Sandbox; environment: string }) {
  const { reason } = sandbox;
  const place = placeOf(sandbox);
  return (
    <li
      className={cn(
        'relative grid grid-cols-[minmax(0,1fr)_auto] items-center gap-x-4 gap-y-1 px-4 py-2.5 hover:bg-raised/60',
        columns,
      )}
    >
      <span className="order-2 justify-self-end lg:order-none lg:justify-self-start">
        <SandboxBadge sandbox={sandbox} />
      </span>
      <span className="min-w-0 text-sm">
        <Link href={`/sandboxes/${sandbox.id}`} className={cn('block truncate font-mono font-medium', rowLink)}>
          {shortId(sandbox.id)}
        </Link>
        <Link
          href={`/sessions/${sandbox.session_id}`}
          className="relative font-mono text-xs text-soft hover:text-ink hover:underline"
        >
          {shortId(sandbox.session_id)}
        </Link>
        <span className="block truncate text-xs text-soft lg:hidden">
          {[environment, place, sandbox.launch].filter((part) => part !== null).join(' · ')} ·{' '}
          <Time at={sandbox.updated_at} />
        </span>
      </span>
      <span className="hidden truncate text-sm text-soft lg:block" title={environment}>
        {environment}
      </span>
      <span className="hidden min-w-0 text-sm text-soft lg:block">
        <span className="block truncate" title={place ?? ''}>
          {place ?? '—'}
        </span>
        {sandbox.pod === null || sandbox.pod === place ? null : (
          <span className="block truncate font-mono text-xs" title={sandbox.pod}>
            {sandbox.pod}
          </span>
        )}
      </span>
      <span
        className="hidden text-sm text-soft lg:block"
        title={sandbox.launch === null ? '' : LAUNCHES[sandbox.launch]}
      >
        {sandbox.launch ?? '—'}
      </span>
      <span className="hidden text-right text-sm text-soft lg:block">
        <Time at={sandbox.created_at} />
      </span>
      <span className="hidden text-right text-sm text-soft lg:block">
        <Time at={sandbox.updated_at} />
      </span>
      {reason === null ? null : (
        <span
          className={cn(
            'order-3 col-span-full text-xs first-letter:uppercase lg:col-start-2',
            TONE_TEXT[reasonTone(sandbox)],
          )}
        >
          {reasonWords(reason)}
        </span>
      )}
    </li>
  );
}

/** What is kept warm; nothing at all where no environment asks for it. */
function Pools() {
  const pools = usePages<SandboxPool>(['sandbox-pools'], '/v1/x/sandbox_pools?limit=50', REFRESH_MS);
  if (pools.items.length === 0)
    return pools.isError ? (
      <div className="mb-5">
        <FormError text={`The pools cannot be shown. ${messageOf(pools.error)}`} />
      </div>
    ) : null;
  return (
    <section aria-labelledby="pools" className="mb-5">
      <h2 id="pools" className="mb-2 text-sm font-medium">
        Warm pools
      </h2>
      <Panel className="overflow-hidden">
        <Paged list={pools} empty={null}>
          <ul className="divide-y">
            {pools.items.map((pool) => (
              <PoolRow key={pool.environment_id} pool={pool} />
            ))}
          </ul>
        </Paged>
      </Panel>
    </section>
  );
}

function PoolRow({ pool }: { pool: SandboxPool }) {
  const isShort = pool.ready < pool.size;
  const fill = pool.size === 0 ? 1 : Math.min(1, pool.ready / pool.size);
  return (
    <li className="grid grid-cols-2 items-center gap-x-4 gap-y-1.5 px-4 py-3 text-sm md:grid-cols-[minmax(0,1fr)_minmax(8rem,14rem)_7rem_8rem_6rem]">
      <Link
        href={`/sandboxes?environment=${pool.environment_id}`}
        className="col-span-2 truncate font-medium hover:underline md:col-span-1"
      >
        {pool.environment_name}
      </Link>
      <span aria-hidden className="h-2 overflow-hidden rounded-full bg-raised">
        <span
          className={cn('block h-full rounded-full transition-[width]', isShort ? 'bg-warn' : 'bg-accent')}
          style={{ width: `${100 * fill}%` }}
        />
      </span>
      <span className="text-right tabular-nums md:text-left">
        {number(pool.ready)} of {number(pool.size)} ready
      </span>
      <span className="text-soft tabular-nums">{number(pool.claims_per_minute)} claims / min</span>
      <span className={cn('text-right tabular-nums', pool.waiting > 0 ? 'text-warn' : 'text-soft')}>
        {number(pool.waiting)} waiting
      </span>
      {pool.reason !== null ? (
        <span className="col-span-full text-xs text-warn [overflow-wrap:anywhere]">
          <span className="inline-block first-letter:uppercase">{reasonWords(pool.reason)}</span>: {pool.reason.message}
        </span>
      ) : pool.observed_at === null ? (
        <span className="col-span-full text-xs text-soft">
          Nothing keeps it warm: a pool needs a Kubernetes cluster as the provider.
        </span>
      ) : null}
    </li>
  );
}
