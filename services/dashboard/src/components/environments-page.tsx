'use client';
import type { Environment } from '@holdfast/contracts';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { Plus, Server } from 'lucide-react';
import { useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { number } from '../lib/format.ts';
import { EnvironmentForm } from './environment-form.tsx';
import { EnvironmentWorkers } from './environment-workers.tsx';
import { Paged, usePages } from './paged.tsx';
import { Badge, Button, Confirm, Empty, Id, Modal, PageHeader, Panel, Time } from './ui.tsx';

export function EnvironmentsPage() {
  const client = useQueryClient();
  const list = usePages<Environment>(['environments'], '/v1/environments?limit=50');
  /** What the form is open for. */
  const [editing, setEditing] = useState<Environment | 'new'>();
  const [archiving, setArchiving] = useState<Environment>();
  /** Whose workers are shown. */
  const [showing, setShowing] = useState<Environment>();
  const refresh = () => client.invalidateQueries({ queryKey: ['environments'] });
  const archive = useMutation({
    mutationFn: (id: string) => api(`/v1/environments/${id}/archive`, { method: 'POST' }),
    onSuccess: async () => {
      setArchiving(undefined);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  return (
    <div className="mx-auto w-full max-w-6xl p-4 md:p-6">
      <PageHeader
        title="Environments"
        about="Where tools run: how a sandbox is made, and what it may reach on the network."
      >
        <Button look="primary" onClick={() => setEditing('new')}>
          <Plus className="size-4" aria-hidden /> New environment
        </Button>
      </PageHeader>
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<Server />} title="No environments yet" />}>
          <ul className="divide-y">
            {list.items.map((environment) => (
              <li key={environment.id} className="flex flex-wrap items-center gap-x-4 gap-y-1.5 px-4 py-2.5">
                <span className="min-w-0 flex-1 max-sm:basis-full">
                  <span className="flex items-center gap-2">
                    <span className="truncate text-sm font-medium">{environment.name}</span>
                    <Reach config={environment.config} />
                    <PoolBadge environment={environment} />
                  </span>
                  <span className="block truncate text-xs leading-6 text-soft">{reachWords(environment.config)}</span>
                </span>
                <Id id={environment.id} className="hidden lg:inline-flex" />
                <span className="hidden w-24 text-right text-sm text-soft sm:block">
                  <Time at={environment.created_at} />
                </span>
                <span className="flex gap-2">
                  {environment.config.type === 'cloud' ? null : (
                    <Button size="small" onClick={() => setShowing(environment)}>
                      Workers
                    </Button>
                  )}
                  <Button size="small" className="w-16" onClick={() => setEditing(environment)}>
                    Edit
                  </Button>
                  {environment.name === 'default' ? (
                    <span className="hidden w-20 sm:block" />
                  ) : (
                    <Button size="small" className="w-20" onClick={() => setArchiving(environment)}>
                      Archive
                    </Button>
                  )}
                </span>
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <Modal
        open={editing !== undefined}
        onClose={() => setEditing(undefined)}
        title={editing === undefined || editing === 'new' ? 'New environment' : `Edit ${editing.name}`}
      >
        <EnvironmentForm
          {...(editing === undefined || editing === 'new' ? {} : { environment: editing })}
          onDone={() => {
            setEditing(undefined);
            void refresh();
          }}
        />
      </Modal>
      <Modal
        open={showing !== undefined}
        onClose={() => setShowing(undefined)}
        title={`Workers of ${showing?.name ?? ''}`}
        className="w-[min(44rem,calc(100vw-2rem))]"
      >
        {showing === undefined ? null : <EnvironmentWorkers environment={showing} />}
      </Modal>
      <Confirm
        open={archiving !== undefined}
        title={`Archive ${archiving?.name ?? ''}?`}
        about="New sessions cannot use it; those that do go on. This cannot be undone."
        action="Archive"
        busy={archive.isPending}
        onConfirm={() => archiving !== undefined && archive.mutate(archiving.id)}
        onClose={() => setArchiving(undefined)}
      />
    </div>
  );
}

function Reach({ config }: { config: Environment['config'] }) {
  if (config.type === 'self_hosted') return <Badge>self-hosted</Badge>;
  const { type } = config.networking;
  return <Badge tone={type === 'limited' ? 'good' : 'neutral'}>{type}</Badge>;
}

function reachWords(config: Environment['config']): string {
  if (config.type === 'self_hosted') return 'A worker of yours runs the tools';
  const { networking } = config;
  return networking.type === 'unrestricted'
    ? 'Any public address'
    : networking.allowed_hosts.join(', ') || 'No network';
}

function PoolBadge({ environment: { config } }: { environment: Environment }) {
  const size = config.type === 'cloud' ? (config.x_sandbox?.pool_size ?? 0) : 0;
  return size === 0 ? null : <Badge className="whitespace-nowrap">pool of {number(size)}</Badge>;
}
