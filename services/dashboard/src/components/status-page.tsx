'use client';
import type { PlatformStatus } from '@holdfast/contracts';
import type { ReactNode } from 'react';
import { bytes, number } from '../lib/format.ts';
import { usePlatformStatus } from '../lib/platform-status.ts';
import { Badge, cn, Failure, Loading, PageHeader, Panel, Time } from './ui.tsx';

const LATE_RELAY_MS = 5_000;
/** Without one of each the platform does not do its work. */
const NEEDED = ['gateway-api', 'session', 'sandbox'];

export function StatusPage() {
  const query = usePlatformStatus(2_000);
  if (query.isPending) return <Loading />;
  if (query.data === undefined) return <Failure error={query.error} onRetry={() => void query.refetch()} />;
  const status = query.data;
  const missing = NEEDED.filter((name) => !status.services.some(({ service }) => service === name));
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Status" about="What this workspace uses, and how the platform is.">
        <span role="status">
          {query.isError ? (
            <Badge tone="bad">The API does not answer; this is what it last said</Badge>
          ) : missing.length > 0 ? (
            <Badge tone="bad">{missing.join(' and ')} does not report</Badge>
          ) : (
            <Badge tone="good">
              <span className="size-1.5 rounded-full bg-current" aria-hidden /> All services report
            </Badge>
          )}
        </span>
      </PageHeader>
      {status.demo_gateway ? (
        // Wider screens have this above every page.
        <p className="mb-4 rounded-lg bg-warn-soft p-3 text-sm text-warn md:hidden">
          The model gateway is the demo gateway: a script, not a model. Set{' '}
          <code className="font-mono">LITELLM_GATEWAY_URL</code> and <code className="font-mono">LITELLM_API_KEY</code>{' '}
          in <code className="font-mono">.env</code> and start again to use your models.
        </p>
      ) : null}
      <Figures status={status} />
      {(status.dead_letters ?? 0) > 0 ? (
        <p role="alert" className="mt-4 rounded-lg bg-bad-soft p-3 text-sm text-bad">
          {number(status.dead_letters ?? 0)} events could not be handled by a consumer and lie in the dead-letter
          stream.
        </p>
      ) : null}
      <h2 className="mt-6 mb-2 text-sm font-medium">Services</h2>
      <Panel className="overflow-hidden">
        <div
          aria-hidden
          className={cn('hidden gap-x-4 border-b px-4 py-2 text-xs font-medium text-soft md:grid', serviceColumns)}
        >
          <span>Process</span>
          <span className="text-right">Memory</span>
          <span>Started</span>
          <span>Figures</span>
        </div>
        <ul className="divide-y">
          {status.services.map((service) => (
            <ServiceRow key={service.instance} service={service} />
          ))}
          {missing.map((name) => (
            <li key={name} className="flex items-center gap-2.5 px-4 py-3 text-sm">
              <span className="size-2 rounded-full bg-bad" aria-hidden />
              <span className="font-medium">{name}</span>
              <span className="text-bad">no process reports</span>
            </li>
          ))}
        </ul>
      </Panel>
    </div>
  );
}

const serviceColumns = 'md:grid-cols-[12rem_6rem_8rem_minmax(0,1fr)]';

function ServiceRow({ service }: { service: PlatformStatus['services'][number] }) {
  return (
    <li
      className={cn(
        'grid grid-cols-[minmax(0,1fr)_auto] items-baseline gap-x-4 gap-y-1 px-4 py-3 text-sm',
        serviceColumns,
      )}
    >
      <span className="flex min-w-0 items-center gap-2.5 font-medium">
        <span className="size-2 shrink-0 rounded-full bg-accent" aria-hidden />
        <span className="truncate" title={service.service}>
          {service.instance}
        </span>
      </span>
      <span className="text-right tabular-nums">{bytes(service.memory_bytes)}</span>
      <span className="text-soft">
        <Time at={service.started_at} />
      </span>
      <span className="col-span-2 flex flex-wrap gap-x-4 gap-y-1 text-xs text-soft md:col-span-1">
        {Object.entries(service.figures).map(([name, value]) => (
          <span key={name} className="whitespace-nowrap">
            {figureName(name)} <span className="text-ink tabular-nums">{figureValue(name, value)}</span>
          </span>
        ))}
      </span>
    </li>
  );
}

/** `relay_lagMs` → "relay lag". */
function figureName(name: string): string {
  return name
    .replace(/Ms$/, '')
    .replaceAll('_', ' ')
    .replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}
function figureValue(name: string, value: number | boolean | string): string {
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (typeof value === 'string') return value;
  return name.endsWith('Ms') ? `${number(Math.round(value))} ms` : number(value);
}

function Figures({ status }: { status: PlatformStatus }) {
  const lag = status.relay?.lag_ms ?? null;
  const isLate = status.relay === null || (lag ?? 0) > LATE_RELAY_MS;
  return (
    <div className="grid grid-cols-2 gap-3 lg:grid-cols-5">
      <Figure name="Sessions" value={number(sum(status.sessions))} about={breakdown(status.sessions)} />
      <Figure
        name="Needs you"
        value={number(status.sessions_needing_action)}
        about="sessions that wait for an answer"
        isWarning={status.sessions_needing_action > 0}
      />
      <Figure name="Queue" value={number(status.queued_messages)} about="messages behind running turns" />
      <Figure
        name="Relay lag"
        value={status.relay === null ? 'no leader' : lag === null ? 'starting' : `${number(Math.round(lag))} ms`}
        about={status.relay === null ? 'another process takes over within seconds' : `led by ${status.relay.instance}`}
        isWarning={isLate}
      />
      <Figure name="Sandboxes" value={number(sum(status.sandboxes))} about={breakdown(status.sandboxes)} />
    </div>
  );
}

const sum = (counts: Readonly<Record<string, number>>) => Object.values(counts).reduce((a, b) => a + b, 0);

function breakdown(counts: Readonly<Record<string, number>>): string {
  const parts = Object.entries(counts).map(([name, amount]) => `${number(amount)} ${name}`);
  return parts.length === 0 ? 'none' : parts.join(', ');
}

function Figure(props: { name: string; value: ReactNode; about: string; isWarning?: boolean }) {
  return (
    <Panel className="p-4">
      <p className="text-sm text-soft">{props.name}</p>
      <p className={cn('mt-1 text-2xl font-semibold tabular-nums', props.isWarning === true && 'text-warn')}>
        {props.value}
      </p>
      <p className="mt-1 text-xs text-soft">{props.about}</p>
    </Panel>
  );
}
