import { SandboxPage } from '../../../../components/sandbox-page.tsx';

export const metadata = { title: 'Sandbox' };

export default async function Page({ params }: { params: Promise<{ id: string }> }) {
  const { id } = await params;
  return <SandboxPage key={id} id={id} />;
}
