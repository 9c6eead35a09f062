exec(open('/tmp/ntest.py').read().split('for lv in')[0])
import math
def bench(kind,B,T,D,H,ragged):
    torch.manual_seed(0)
    L=(torch.exp(torch.randn(B)*0.5)*T*0.45).long().clamp(1,T) if ragged else torch.full((B,),T); L[0]=T
    x=torch.randn(B,T,D); G=KINDS[kind][1]*H; n=int(L.sum()); flops=3*2*n*G*(D+H)
    cell=cell_class(kind)(D,H); pk=Packing.of(L,T); st=cell.init_state(B)
    def nat():
        y,c=RecurrentLayer.apply(kind,pk,x.view(B*T,D)[pk.index_N].requires_grad_(),cell.weight_ih,cell.weight_hh,cell.bias_ih,cell.bias_hh,st['h'],st.get('c'))
        cell.zero_grad(); y.sum().backward()
    m={'lstm':torch.nn.LSTM,'gru':torch.nn.GRU,'rnn':torch.nn.RNN}[kind](D,H,batch_first=True)
    def pack():
        p=torch.nn.utils.rnn.pack_padded_sequence(x.detach().requires_grad_(),L,batch_first=True,enforce_sorted=False)
        y,_=m(p); m.zero_grad(); y.data.sum().backward()
    def pad():
        y,_=m(x.detach().requires_grad_()); m.zero_grad(); y.sum().backward()
    ts={k:[] for k in ('nat','pack','pad')}
    for r in range(5):
        for k,f in (('nat',nat),('pack',pack),('pad',pad)):
            s=time.perf_counter(); f(); ts[k].append(time.perf_counter()-s)
    med={k:sorted(v)[2] for k,v in ts.items()}
    print(kind,(B,T,D,H),'ragged' if ragged else 'full',f'native {flops/med["nat"]/1e9:.0f} GF/s; x packed {med["pack"]/med["nat"]:.1f}; x padded {med["pad"]/med["nat"]:.2f}',flush=True)
for kind in ('lstm','gru','rnn'):
    for s in ((10,80,256,256),(32,200,128,256),(10,30,32,64),(16,20,96,670)):
        for r in (True,False): bench(kind,*s,r)
