'use client';
import type { ApiKeyResource } from '@holdfast/contracts';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { Copy, KeyRound, Plus } from 'lucide-react';
import { useState } from 'react';
import { toast } from 'sonner';
import { api, messageOf } from '../lib/api.ts';
import { Paged, usePages } from './paged.tsx';
import { Badge, Button, Confirm, Empty, Field, Input, Modal, PageHeader, Panel, Time } from './ui.tsx';

export function KeysPage() {
  const client = useQueryClient();
  const list = usePages<ApiKeyResource>(['keys'], '/v1/x/api_keys?limit=50');
  const [creating, setCreating] = useState(false);
  const [name, setName] = useState('');
  const [made, setMade] = useState<string>();
  const [revoking, setRevoking] = useState<ApiKeyResource>();
  const refresh = () => client.invalidateQueries({ queryKey: ['keys'] });
  const create = useMutation({
    mutationFn: () => api<ApiKeyResource & { key: string }>('/v1/x/api_keys', { body: { name } }),
    onSuccess: async ({ key }) => {
      setMade(key);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  const revoke = useMutation({
    mutationFn: (id: string) => api(`/v1/x/api_keys/${id}/revoke`, { method: 'POST' }),
    onSuccess: async () => {
      setRevoking(undefined);
      await refresh();
    },
    onError: (error) => toast.error(messageOf(error)),
  });
  const close = () => {
    setCreating(false);
    setMade(undefined);
    setName('');
  };
  return (
    <div className="mx-auto w-full max-w-4xl p-4 md:p-6">
      <PageHeader title="API keys" about="A key acts for the whole workspace. It is stored as a hash and shown once.">
        <Button look="primary" onClick={() => setCreating(true)}>
          <Plus className="size-4" aria-hidden /> New key
        </Button>
      </PageHeader>
      <Panel className="overflow-hidden">
        <Paged list={list} empty={<Empty icon={<KeyRound />} title="No API keys" />}>
          <ul className="divide-y">
            {list.items.map((key) => (
              <li key={key.id} className="flex items-center gap-4 px-4 py-3">
                <span className="min-w-0 flex-1">
                  <span className="block truncate font-medium">{key.name}</span>
                  <span className="block truncate font-mono text-xs text-soft">{key.hint}</span>
                </span>
                <span className="hidden text-sm text-soft sm:block">
                  made <Time at={key.created_at} />
                </span>
                {key.revoked_at === null ? (
                  <Button size="small" onClick={() => setRevoking(key)}>
                    Revoke
                  </Button>
                ) : (
                  <Badge tone="bad">Revoked</Badge>
                )}
              </li>
            ))}
          </ul>
        </Paged>
      </Panel>
      <Modal
        open={creating}
        onClose={close}
        title={made === undefined ? 'New API key' : 'Your new key'}
        {...(made === undefined ? {} : { about: 'Copy it now: it is not shown again.' })}
      >
        {made === undefined ? (
          <form
            className="space-y-4"
            onSubmit={(event) => {
              event.preventDefault();
              create.mutate();
            }}
          >
            <Field label="Name" hint="Who or what uses it.">
              <Input value={name} onChange={(event) => setName(event.target.value)} required maxLength={256} />
            </Field>
            <div className="flex justify-end">
              <Button look="primary" type="submit" busy={create.isPending}>
                Create
              </Button>
            </div>
          </form>
        ) : (
          <div className="space-y-4">
            <code className="block rounded-lg bg-raised p-3 font-mono text-sm break-all">{made}</code>
            <div className="flex justify-end gap-2">
              <Button
                onClick={() =>
                  void navigator.clipboard.writeText(made).then(
                    () => toast.success('Copied.'),
                    () => toast.error('The browser refused; select the key and copy it.'),
                  )
                }
              >
                <Copy className="size-4" aria-hidden /> Copy
              </Button>
              <Button look="primary" onClick={close}>
                Done
              </Button>
            </div>
          </div>
        )}
      </Modal>
      <Confirm
        open={revoking !== undefined}
        title={`Revoke ${revoking?.name ?? ''}?`}
        about="Requests with it are refused at once, its open streams and the dashboard sign-ins made with it end. This cannot be undone."
        action="Revoke"
        busy={revoke.isPending}
        onConfirm={() => revoking !== undefined && revoke.mutate(revoking.id)}
        onClose={() => setRevoking(undefined)}
      />
    </div>
  );
}
