'use client';
import { useQuery } from '@tanstack/react-query';
import type { ReactNode } from 'react';
import { api } from '../lib/api.ts';
import { bytes, number } from '../lib/format.ts';
import { Badge, Failure, Loading, PageHeader, Panel, Time } from './ui.tsx';

export interface PlatformStatus {
  readonly demo_gateway: boolean;
  readonly services: readonly {
    readonly service: string;
    readonly instance: string;
    readonly started_at: string;
    readonly memory_bytes: number;
    readonly figures: Readonly<Record<string, number | boolean | string>>;
  }[];
  readonly sessions: Readonly<Record<string, number>>;
  readonly queued_messages: number;
  readonly relay: { readonly instance: string; readonly lag_ms: number | null } | null;
  readonly dead_letters: number | null;
  readonly sandboxes: Readonly<Record<string, number>>;
}

const LATE_RELAY_MS = 5_000;

export function StatusPage() {
  const query = useQuery({
    queryKey: ['status'],
    queryFn: ({ signal }) => api<PlatformStatus>('/v1/x/status', { signal }),
    refetchInterval: 2_000,
  });
  if (query.isPending) return <Loading />;
  if (query.data === undefined) return <Failure error={query.error} onRetry={() => void query.refetch()} />;
  const status = query.data;
  const sum = (counts: Readonly<Record<string, number>>) => Object.values(counts).reduce((a, b) => a + b, 0);
  const lag = status.relay?.lag_ms ?? null;
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader title="Status" about="What this workspace uses, and how the platform is.">
        {query.isError ? <Badge tone="bad">The API does not answer; this is what it last said</Badge> : null}
      </PageHeader>
      <div className="grid gap-4 sm:grid-cols-2 lg:grid-cols-4">
        <Figure name="Sessions" value={number(sum(status.sessions))} about={breakdown(status.sessions)} />
        <Figure name="Queued messages" value={number(status.queued_messages)} about="behind running turns" />
        <Figure
          name="Relay"
          value={status.relay === null ? 'no leader' : lag === null ? 'starting' : `${number(Math.round(lag))} ms`}
          about={
            status.relay === null
              ? 'another process takes over within seconds'
              : `behind the log, led by ${status.relay.instance}`
          }
          {...(status.relay === null || (lag ?? 0) > LATE_RELAY_MS ? { tone: 'warn' as const } : {})}
        />
        <Figure name="Sandboxes" value={number(sum(status.sandboxes))} about={breakdown(status.sandboxes)} />
      </div>
      {(status.dead_letters ?? 0) > 0 ? (
        <p role="alert" className="mt-4 rounded-lg bg-bad-soft p-3 text-sm text-bad">
          {number(status.dead_letters ?? 0)} events could not be handled by a consumer and lie in the dead-letter
          stream.
        </p>
      ) : null}
      <Panel className="mt-5 overflow-x-auto">
        <table className="w-full text-sm">
          <thead className="border-b text-left text-soft">
            <tr>
              <th className="px-4 py-2.5 font-medium">Service</th>
              <th className="px-4 py-2.5 font-medium">Instance</th>
              <th className="px-4 py-2.5 font-medium">Memory</th>
              <th className="px-4 py-2.5 font-medium">Started</th>
              <th className="px-4 py-2.5 font-medium">Figures</th>
            </tr>
          </thead>
          <tbody className="divide-y">
            {status.services.map((service) => (
              <tr key={service.instance}>
                <td className="px-4 py-2.5 font-medium">{service.service}</td>
                <td className="px-4 py-2.5 font-mono text-xs text-soft">{service.instance}</td>
                <td className="px-4 py-2.5 tabular-nums">{bytes(service.memory_bytes)}</td>
                <td className="px-4 py-2.5 text-soft">
                  <Time at={service.started_at} />
                </td>
                <td className="px-4 py-2.5 text-xs text-soft">
                  {Object.entries(service.figures)
                    .map(([name, value]) => `${name.replaceAll('_', ' ')}: ${String(value)}`)
                    .join(' · ')}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
        {status.services.length === 0 ? <p className="p-4 text-sm text-soft">No service has reported yet.</p> : null}
      </Panel>
    </div>
  );
}

function breakdown(counts: Readonly<Record<string, number>>): string {
  const parts = Object.entries(counts).map(([name, amount]) => `${number(amount)} ${name}`);
  return parts.length === 0 ? 'none' : parts.join(', ');
}

function Figure(props: { name: string; value: ReactNode; about: string; tone?: 'warn' }) {
  return (
    <Panel className="p-4">
      <p className="text-sm text-soft">{props.name}</p>
      <p className={props.tone === 'warn' ? 'mt-1 text-2xl font-semibold text-warn' : 'mt-1 text-2xl font-semibold'}>
        {props.value}
      </p>
      <p className="mt-1 truncate text-xs text-soft" title={props.about}>
        {props.about}
      </p>
    </Panel>
  );
}
