'use client';
import type { Environment } from '@holdfast/contracts';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { Plus, Server } from 'lucide-react';
import { useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { Paged, usePages } from './paged.tsx';
import {
  Badge,
  Button,
  Confirm,
  Empty,
  Field,
  FormError,
  Id,
  Input,
  Modal,
  PageHeader,
  Panel,
  Select,
  TextArea,
  Time,
} from './ui.tsx';

export function EnvironmentsPage() {
  const client = useQueryClient();
  const list = usePages<Environment>(['environments'], '/v1/environments?limit=50');
  const [creating, setCreating] = useState(false);
  const [archiving, setArchiving] = useState<Environment>();
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
      <PageHeader title="Environments" about="Where tools run: what a sandbox may reach on the network.">
        <Button look="primary" onClick={() => setCreating(true)}>
          <Plus className="size-4" aria-hidden /> New environment
        </Button>
      </PageHeader>
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<Server />} title="No environments yet" />}>
          <ul className="divide-y">
            {list.items.map((environment) => (
              <li key={environment.id} className="flex items-center gap-4 px-4 py-2.5">
                <span className="min-w-0 flex-1">
                  <span className="flex items-center gap-2">
                    <span className="truncate text-sm font-medium">{environment.name}</span>
                    <Badge tone={environment.config.networking.type === 'limited' ? 'good' : 'neutral'}>
                      {environment.config.networking.type}
                    </Badge>
                  </span>
                  <span className="block truncate text-xs leading-6 text-soft">
                    {environment.config.networking.type === 'unrestricted'
                      ? 'Any public address'
                      : environment.config.networking.allowed_hosts.join(', ') || 'No network'}
                  </span>
                </span>
                <Id id={environment.id} className="hidden lg:inline-flex" />
                <span className="hidden w-24 text-right text-sm text-soft sm:block">
                  <Time at={environment.created_at} />
                </span>
                {environment.name === 'default' ? (
                  <span className="w-20" />
                ) : (
                  <Button size="small" className="w-20" onClick={() => setArchiving(environment)}>
                    Archive
                  </Button>
                )}
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <Modal open={creating} onClose={() => setCreating(false)} title="New environment">
        <EnvironmentForm
          onDone={() => {
            setCreating(false);
            void refresh();
          }}
        />
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

function EnvironmentForm({ onDone }: { onDone: () => void }) {
  const [name, setName] = useState('');
  const [networking, setNetworking] = useState<'limited' | 'unrestricted'>('limited');
  const [hosts, setHosts] = useState('');
  const create = useMutation({
    mutationFn: () =>
      api<Environment>('/v1/environments', {
        body: {
          name: name.trim(),
          config: {
            type: 'cloud',
            networking:
              networking === 'unrestricted'
                ? { type: networking }
                : { type: networking, allowed_hosts: hosts.split(/[\s,]+/).filter((host) => host !== '') },
          },
        },
      }),
    onSuccess: onDone,
  });
  return (
    <form
      className="space-y-4"
      onSubmit={(event) => {
        event.preventDefault();
        create.mutate();
      }}
    >
      <Field label="Name">
        <Input value={name} onChange={(event) => setName(event.target.value)} required maxLength={256} />
      </Field>
      <Field label="Network">
        <Select value={networking} onChange={(event) => setNetworking(event.target.value as typeof networking)}>
          <option value="limited">Only the hosts below</option>
          <option value="unrestricted">Any public address</option>
        </Select>
      </Field>
      {networking === 'limited' ? (
        <Field label="Allowed hosts" hint="One per line; *.example.com allows every name below it. Empty: no network.">
          <TextArea
            rows={4}
            className="font-mono text-xs"
            value={hosts}
            onChange={(event) => setHosts(event.target.value)}
          />
        </Field>
      ) : null}
      {create.isError ? <FormError text={messageOf(create.error)} /> : null}
      <div className="flex justify-end">
        <Button look="primary" type="submit" busy={create.isPending}>
          Create
        </Button>
      </div>
    </form>
  );
}
